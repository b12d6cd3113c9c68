"""The configuration of a run: frozen dataclasses, written to TOML.

A run is a pure function of its `RunConfig`. Recipes, `config.toml` in a run directory and the flags
of `iwae train` set the same fields, so that each has one name, one default and one validation.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import iwae.estimators.rules as rules
from iwae._utils.checks import check_at_least_one, check_counts, check_seed, require
from iwae.errors import InputError

PRESETS: dict[int, tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    1: (((200, 200),), (50,)),
    2: (((200, 200), (100, 100)), (100, 50)),
}
"""Hidden widths and latents of Burda et al. §5, by number of stochastic layers."""


@dataclass(frozen=True)
class DataConfig:
    """The data set, and how its values are read."""

    dataset: str = "digits"
    """A registered data set (see `iwae data`) or a .npy, .npz, .csv, .csv.gz or .parquet file."""
    values: Literal["auto", "binary", "intensity", "real", "table"] = "auto"
    """How to read the values of your own file. table: each column by its own type (see `iwae data
    FILE`), as auto does if columns have names or hold words or gaps. auto decides other files from
    their range, and rejects ambiguous values: integers with a maximum from 2 to 127, and numbers in
    0-1 that are all below 1/255."""
    schema: str | None = None
    """A .toml file with the types of a table's columns, for those that are not to be detected;
    `iwae data FILE --write-schema mine.toml` writes one."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first line of a .csv file holds the names of its columns; auto rejects a line
    that could be either names or an example."""
    binarization: Literal["auto", "dynamic", "fixed", "none"] = "auto"
    """dynamic: a fresh 0/1 sample each time an image is used; fixed: one sample for the whole run;
    none: values as they are. auto: dynamic for intensities, none for binary and real values."""


@dataclass(frozen=True)
class ModelConfig:
    """The stochastic layers and their networks."""

    layers: int = 1
    """Number of stochastic layers L; for 1 and 2 the paper's widths are the default."""
    hidden: tuple[tuple[int, ...], ...] | None = None
    """Widths of the hidden layers, per stochastic layer from the image up; written 200,200/100,100
    at the command line. Default: the paper's widths for --layers."""
    latents: tuple[int, ...] | None = None
    """Latent units per stochastic layer from the image up, written 100,50. Default: the paper's."""
    likelihood: str = "auto"
    """bernoulli, gaussian, or the name of a numpyro distribution whose arguments each take one
    value per pixel. auto: bernoulli for binary data and intensities, gaussian for real values."""
    uncertain_weights: Literal["none", "encoder", "decoder", "both"] = "none"
    """Networks whose weights and biases are Gaussian, with learned means and variances and a fresh
    draw for each image and importance sample, unless --weight-alpha lets them share some: encoder
    is IWAEU_rec, both is IWAEU."""
    weight_sigma: float = 0.01
    """Initial standard deviation of every uncertain weight and bias."""
    inference: Literal["bottom-up", "ladder"] = "bottom-up"
    """How q(h|x) of several layers goes: bottom-up, q(h_1|x) q(h_2|h_1) …; or down a ladder, where
    q(h_l|h_{l+1}, x) combines p(h_l|h_{l+1}) with what a deterministic path finds in x, each by its
    precision (Sønderby et al. 2016)."""
    proposal: Literal["independent", "hierarchical", "hierarchical-independent"] = "independent"
    """How the k importance samples of training are drawn: independently from one q(h|x); by k heads
    q_j(h|z_0, x) with a shared z_0 (H-IWAE); or by k heads, each with its own z_0. Evaluation then
    draws in blocks of that k."""
    proposal_weights: Literal["uniform", "balance", "power"] = "uniform"
    """Weights of the heads: 1/k, q_j / sum q_i, or q_j^2 / sum q_i^2."""
    proposal_latents: int = 32
    """Units of z_0."""
    proposal_width: int = 100
    """Units of the hidden layer of each head, and of the reverse model r(z_0|h, x)."""
    initialization: Literal["glorot", "fan-in"] = "glorot"
    """glorot: weights U[±√(6/(n_in+n_out))], the output bias from the training mean, other biases
    zero; fan-in: weights U[±1/√n_in], all biases zero."""
    networks: Literal["tanh", "tanh+linear"] = "tanh"
    """tanh+linear: beside the tanh layers, linear paths from the input of every network to its
    output. A table's model then starts near the Gaussian of its training rows: the codes are
    principal components, and the decoder is linear in them or, with correlated noise, constant."""
    noise: Literal["independent", "full", "low-rank"] = "independent"
    """Noise of a table's real, positive and bounded columns given the latents: independent, or with
    a learned correlation matrix, of any form or of --noise-rank factors."""
    noise_rank: int = 4
    """Number of factors of low-rank noise."""
    prior: Literal["normal", "mixture"] = "normal"
    """Prior of the top layer: N(0, I), or a learned mixture of --prior-components Gaussians with
    diagonal covariances."""
    prior_components: int = 10
    """Number of components of a mixture prior."""
    missingness: Literal[
        "at-random", "self-masking", "self-masking-high", "self-masking-low", "linear"
    ] = "at-random"
    """Why values of a table's real, positive and bounded columns are missing: at random given what
    is observed (MIWAE); by their own size, or because they are high, or low, or by a linear
    combination of all values, which is then learned (not-MIWAE)."""

    def __post_init__(self) -> None:
        check_counts(self)
        require(
            self.layers >= 1,
            f"layers = {self.layers} was given, but a model needs at least 1 stochastic layer; "
            f"give --layers 1 or more.",
        )
        self._check_proposal()
        for name in ("hidden", "latents"):
            given = getattr(self, name)
            require(
                given is None or len(given) == self.layers,
                f"{name} describes {len(given or ())} stochastic layers, but layers = "
                f"{self.layers}; give one entry for each layer, from the image up, or --layers "
                f"{len(given or ())}.",
            )
        require(
            self.layers in PRESETS or None not in (self.hidden, self.latents),
            f"There is no preset with {self.layers} stochastic layers; give both --hidden and "
            f"--latents, or choose --layers 1 or 2.",
        )
        require(
            0 < self.weight_sigma < float("inf"),
            f"weight_sigma = {self.weight_sigma} was given, but it must be a positive number.",
        )
        widths = [n for group in self.hidden or () for n in group] + list(self.latents or ())
        require(
            all(n >= 1 for n in widths),
            f"A layer of width {min(widths, default=1)} was given, but every width must be at "
            f"least 1; correct hidden or latents.",
        )

    def _check_proposal(self) -> None:
        plain = self.proposal == "independent"
        require(
            plain or (self.layers == 1 and self.uncertain_weights == "none"),
            f"proposal = {self.proposal} was given, but it is for one stochastic layer with fixed "
            f"weights; give --layers 1 and leave out --uncertain-weights.",
        )
        require(
            not plain or self.proposal_weights == "uniform",
            f"proposal_weights = {self.proposal_weights} was given, but independent draws have no "
            f"heads to weigh; give --proposal hierarchical.",
        )
        require(
            plain or self.initialization == "glorot",
            f"initialization = {self.initialization} was given, but the heads of a {self.proposal} "
            f"proposal have their own; leave it out.",
        )
        for name, needed in (
            ("proposal", "independent"),
            ("networks", "tanh"),
            ("missingness", "at-random"),
        ):
            require(
                self.inference == "bottom-up" or getattr(self, name) == needed,
                f"inference = {self.inference} was given with {name} = {getattr(self, name)}, but "
                f"a ladder takes {needed} only; give --{name} {needed}, or leave --inference out.",
            )
        for name in ("proposal_latents", "proposal_width", "noise_rank", "prior_components"):
            check_at_least_one(name, getattr(self, name))
        require(
            self.prior == "normal" or (plain and self.uncertain_weights == "none"),
            f"prior = {self.prior} was given, but it is for independent proposals and fixed "
            f"weights; leave out --proposal and --uncertain-weights.",
        )
        require(
            self.networks == "tanh" or (plain and self.initialization == "glorot"),
            f"networks = {self.networks} was given, but it is for independent proposals and has "
            f"its own initial weights; leave out --proposal and --initialization.",
        )
        require(
            self.missingness == "at-random" or (plain and self.uncertain_weights == "none"),
            f"missingness = {self.missingness} was given, but it is for independent proposals and "
            f"fixed weights; leave out --proposal and --uncertain-weights.",
        )

    @property
    def widths(self) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
        """Hidden widths and latents per stochastic layer, the presets filled in."""
        hidden, latents = PRESETS.get(self.layers, ((), ()))
        return self.hidden or hidden, self.latents or latents


Precision = Literal["float32", "tf32", "bfloat16"]

Objective = Literal["vae", "iwae", "miwae", "ciwae", "piwae", "vr-iwae", "jvi"]

PARAMETERS = rules.SETTINGS
"""The setting that each objective has beside k."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """The bound to maximise, its number of importance samples, and its gradient estimator."""

    objective: Objective = "iwae"
    """vae: the ELBO averaged over k samples; iwae: log of the mean of k importance weights; miwae:
    the mean of the IWAE bounds of --m groups of samples; ciwae: --beta times vae plus 1 - --beta
    times iwae; piwae: iwae for the decoder, miwae for the encoder; vr-iwae: Rényi's bound of order
    --alpha; jvi: the jackknife of iwae, of order --order."""
    encoder_objective: Objective | None = None
    """The encoder's objective. Default: the decoder's."""
    estimator: rules.EstimatorName = "reparam"
    """Estimator of the encoder's gradient; dreg suits every objective."""
    k: int = 50
    """Number of importance samples K per image, over all groups."""
    m: int | None = None
    """Number of groups M of miwae and piwae; must divide k."""
    alpha: float | None = None
    """Order α of vr-iwae: 0 is iwae, 1 is vae."""
    beta: float | None = None
    """Weight β of the ELBO in ciwae, from 0 to 1."""
    order: int | None = None
    """Order of jvi, at most k - 1: the largest number of samples the jackknife leaves out."""
    backward_draws: int | None = None
    """Number of the k importance samples, resampled by their weights, through which the gradient
    passes (Burda et al. §3): the same mean gradient at a fraction of the time. Default: all."""

    def __post_init__(self) -> None:
        check_counts(self)
        require(
            self.k >= 1,
            f"k = {self.k} was given, but a bound needs at least 1 importance sample; give --k 1 "
            f"or more.",
        )
        rules.validate_flags(self._objections())

    def _objections(self) -> Iterator[rules.Objection]:
        """The objections of `rules` to the objective, its settings and its estimator."""
        draws = rules.Capabilities()
        yield from rules.check_pair(self.objective, self.encoder_objective)
        yield from rules.check_settings(
            self._objectives,
            k=self.k,
            m=self.m,
            alpha=self.alpha,
            beta=self.beta,
            order=self.order,
        )
        two = self.objective == "piwae" or self.encoder_objective is not None
        of = rules.rules_of(self.estimator)
        yield from rules.check_bounds(of, k=self.k, two=two, draws=draws)
        yield from rules.check_backward(self.backward_draws, two=two, draws=draws)

    @property
    def _objectives(self) -> tuple[Objective, ...]:
        """The decoder's objective, and the encoder's if it differs."""
        own = self.encoder_objective
        return (self.objective,) if own is None else (self.objective, own)

    @property
    def label(self) -> str:
        """The objective and, unless reparam, the estimator: IWAE, MIWAE-5, IWAE by dreg."""
        names = self._objectives
        values = {"m": self.m, "alpha": self.alpha, "beta": self.beta, "order": self.order}
        shape = {n: f"-{values[PARAMETERS[n]]:g}" for n in names if n in PARAMETERS}
        how = "" if self.estimator == "reparam" else f" by {self.estimator}"
        return " / ".join(n.upper() + shape.get(n, "") for n in names) + how


@dataclass(frozen=True)
class TrainingConfig:
    """Optimiser, schedule, budget, and checkpoints."""

    epochs: int = 100
    """Epochs to train for."""
    minutes: float | None = None
    """Stop after this much training time, if the epochs are not completed by then."""
    batch_size: int = 20
    """Images per step. Each epoch draws a new order and drops the last, incomplete batch."""
    optimizer: Literal["adam", "soap"] = "adam"
    """soap: Adam in the eigenbasis of the gradients' second moments; needs far fewer epochs."""
    learning_rate: float = 1e-3
    """Initial learning rate."""
    base_width: int | None = None
    """Width of hidden layers for which the learning rate is meant: that of weights which read n
    hidden units is multiplied by base_width / n where n is larger (Yang et al. 2021, 2203.03466).
    Default: all weights have the same."""
    schedule: Literal["constant", "cosine", "stages"] = "constant"
    """stages: the paper's eight, i = 0 … 7, with 10^(-i/7) times the initial learning rate for a
    fraction 3^i / 3,280 of the epochs."""
    warmup: int = 0
    """Epochs over which the learning rate rises from 0 to that of the schedule."""
    adam_beta1: float = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: float = 0.999
    """Decay of Adam's second moment."""
    adam_epsilon: float = 1e-4
    """Adam's ε as in the paper, where the gradient is SUMMED over the batch. The loss here is a
    mean over the batch, so Adam is given ε / batch_size, which makes exactly the same step."""
    soap_decay: float = 0.95
    """Decay of the moments G Gᵀ and Gᵀ G of a matrix's gradient G, whose eigenbasis SOAP uses."""
    soap_every: int = 10
    """Steps between two updates of that basis."""
    soap_moments_every: int = 1
    """Steps between two updates of those moments."""
    soap_largest: int = 256
    """Widest side of a matrix that is rotated; above 256 it is the narrower side of a matrix only,
    so not the side of the pixels."""
    precision: Precision = "float32"
    """Precision of the factors of matrix products in training: bfloat16 and tf32 are faster on a
    GPU. Sums, parameters, log-weights and evaluations are always in float32."""
    start_from: str | None = None
    """Directory of a finished run whose parameters are the initial ones of this run."""
    kl_warmup: int = 0
    """Epochs over which the weight of log p(h) - log q(h|x) in the objective rises from 0 to 1
    (Sønderby et al. 2016); the bounds that are printed and recorded have it at 1."""
    weight_kl: float = 0.0
    """Weight of KL(q(weights) || N(0, weight_prior^2)) / N, subtracted from the bound, with N
    examples in an epoch; 0, as published for IWAEU, leaves it out. With 1 and K = 1 the sum over
    the training set is a lower bound of its evidence; with K > 1 it can exceed the evidence if each
    importance sample has its own weights."""
    weight_kl_passes: int = 0
    """Epochs over which that weight grows from 0."""
    weight_prior: float = 1.0
    """Standard deviation of the uncertain weights' prior."""
    weight_alpha: float | None = None
    """Order α of black-box α over the uncertain weights (Hernández-Lobato et al. 2016): the bound
    is (1/α) log of the mean of exp(α times the bound given a draw of the weights) over draws; 0 is
    its limit, variational inference. Give --weight-kl 1 beside it. Default: every importance sample
    has its own weights, as published for IWAEU."""
    weight_draws: int | None = None
    """With --weight-alpha, the number of draws of the weights in a step, which its images share;
    each has an equal part of the k importance samples. Default: k."""
    clip: float | None = None
    """Largest global norm of the gradient."""
    skip_spikes: float | None = None
    """Leave out every gradient whose global norm is more than so many times the average of those
    before it: one draw where a conditional is far too narrow can turn all weights of a deep model
    at once."""
    weight_decay: float = 0.0
    """Decoupled decay of Adam: every step also takes this times the learning rate off each weight
    of the networks, as a fraction of it. Biases, the likelihood and the prior do not decay."""
    average: float | None = None
    """Decay of an exponential moving average of the parameters, which then make the final model."""
    patience: int | None = None
    """Stop when the validation bound has not risen for this many validations, and keep the
    parameters of the best one."""
    validate_every: int = 1
    """Epochs between two validations."""
    checkpoint_every: int | None = None
    """Epochs between two checkpoints, in addition to --checkpoint-minutes."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints."""

    def __post_init__(self) -> None:
        check_counts(self)
        every = ("validate_every", "soap_every", "soap_moments_every")
        for name in ("epochs", "batch_size", *every, "soap_largest"):
            check_at_least_one(name, getattr(self, name))
        for name in ("patience", "checkpoint_every", "base_width", "weight_draws"):
            if getattr(self, name) is not None:
                check_at_least_one(name, getattr(self, name))
        for name in ("learning_rate", "adam_epsilon", "clip", "minutes", "weight_prior"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < float("inf"),
                f"{name} = {value} was given, but it must be a positive number.",
            )
        require(
            self.skip_spikes is None or 1 < self.skip_spikes < float("inf"),
            f"skip_spikes = {self.skip_spikes} was given, but it must be more than 1, times the "
            f"average norm.",
        )
        require(
            self.weight_draws is None or self.weight_alpha is not None,
            f"weight_draws = {self.weight_draws} was given, but only --weight-alpha has importance "
            f"samples share draws of the weights; give it, too, or leave weight_draws out.",
        )
        if self.weight_alpha is not None:
            rules.validate_flags(rules.check_weight_alpha(self.weight_alpha))
        for name in ("adam_beta1", "adam_beta2", "soap_decay", "average"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value < 1,
                f"{name} = {value} was given, but a decay lies in [0, 1).",
            )
        require(
            self.weight_decay == 0 or self.optimizer == "adam",
            f"weight_decay = {self.weight_decay} was given, but it is for optimizer = adam; leave "
            f"it out.",
        )
        for name in (
            *("checkpoint_minutes", "weight_kl", "weight_kl_passes", "warmup", "kl_warmup"),
            "weight_decay",
        ):
            value = getattr(self, name)
            require(
                0 <= value < float("inf"),
                f"{name} = {value} was given, but it cannot be negative or infinite.",
            )

    def weight_groups(self, k: int) -> int:
        """The number of draws of the weights in a step with k importance samples."""
        return self.weight_draws or k


@dataclass(frozen=True)
class Stage:
    """A stage of the training: its length, and the settings in which it differs from the others.

    A setting that is left out has the value that `ObjectiveConfig` or `TrainingConfig` gives it. A
    stage with an objective of its own has its own encoder_objective, m, alpha, beta and order, too.
    """

    share: float = 1.0
    """Length beside those of the other stages; a stage has whole epochs, at least one."""
    objective: Objective | None = None
    encoder_objective: Objective | None = None
    estimator: rules.EstimatorName | None = None
    k: int | None = None
    max_k: int | None = None
    """In place of k: the run's k, but at most so many importance samples, in whole groups of the
    m of the objective and of --weight-draws, if there are."""
    m: int | None = None
    alpha: float | None = None
    beta: float | None = None
    order: int | None = None
    backward_draws: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    """Replaces the initial learning rate, by which the schedule over all epochs is multiplied."""
    precision: Precision | None = None
    average: float | None = None
    """Averaging starts with the first stage that has it, and all later ones need it."""

    def __post_init__(self) -> None:
        check_counts(self)
        require(
            0 < self.share < float("inf"),
            f"share = {self.share} was given for a stage, but it must be a positive number.",
        )
        require(
            self.k is None or self.max_k is None,
            f"k = {self.k} and max_k = {self.max_k} were given for a stage, but it has one of "
            f"them; leave out the other.",
        )
        if self.max_k is not None:
            check_at_least_one("max_k", self.max_k)

    @property
    def given(self) -> dict[str, object]:
        """The settings in which the stage differs, by name."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: v for n, v in named.items() if n != "share" and v is not None}

    @property
    def text(self) -> str:
        """The stage as --stages takes it: its share, then its settings."""
        share = repr(self.share).removesuffix(".0")
        return " ".join([share, *(f"{name}={value}" for name, value in self.given.items())])

    def objective_of(self, whole: ObjectiveConfig, groups: int = 1) -> ObjectiveConfig:
        """The objective of the stage, where that of the run is `whole`, with as many importance
        samples in each of `groups`."""
        own = self.objective is not None
        shape = ("encoder_objective", *PARAMETERS.values())
        changed: dict[str, Any] = dict.fromkeys(shape) if own else {}
        changed |= self._of(ObjectiveConfig)
        if self.max_k is not None and self.max_k < whole.k:
            m = math.lcm(changed.get("m", whole.m) or 1, groups)
            changed["k"] = max(m, self.max_k - self.max_k % m)
        return dataclasses.replace(whole, **changed)

    def training_of(self, whole: TrainingConfig) -> TrainingConfig:
        """The training settings of the stage, where those of the run are `whole`."""
        return dataclasses.replace(whole, **self._of(TrainingConfig))

    def _of(self, section: type["ObjectiveConfig | TrainingConfig"]) -> dict[str, Any]:
        names = {f.name for f in dataclasses.fields(section)}
        return {name: value for name, value in self.given.items() if name in names}


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    """Seed of all random numbers of the run."""
    stages: tuple[Stage, ...] = ()
    """Stages of the training, one after the other, which share its epochs: each its share and the
    settings in which it differs, as in "3 k=1 objective=vae / 1", or [[stages]] in a recipe."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        require(
            self.training.weight_kl == 0 or self.model.uncertain_weights != "none",
            f"weight_kl = {self.training.weight_kl} was given, but the model's weights are fixed; "
            f"leave it out, or give --uncertain-weights both.",
        )
        self._check_proposal()
        self._check_kl_warmup()
        if not self.stages:
            self._check_weight_alpha()
        self._check_stages()

    def _check_stages(self) -> None:
        """`InputError` for a stage whose settings do not go together."""
        for number, (stage, first, _) in enumerate(self._lengths(), 1):
            for name in ("k", "max_k"):
                require(
                    name not in stage.given or self.model.proposal == "independent",
                    f"Stage {number} has {name} = {stage.given.get(name)}, but a "
                    f"{self.model.proposal} proposal has {self.objective.k} heads from beginning "
                    f"to end; leave it out.",
                )
            try:
                self.during(stage, first)
            except InputError as error:
                raise InputError(
                    f"Stage {number} ({stage.text}): {error} --stages replaces the stages."
                ) from error
        for number, (_, first, end) in enumerate(self.by_stage, 1):
            require(
                end > first or not self.stages,
                f"Stage {number} has no epoch of the {self.training.epochs}; give at least "
                f"{len(self.stages)} --epochs, one for each stage.",
            )
        averages = [config.training.average for config, _, _ in self.by_stage]
        pairs = enumerate(itertools.pairwise(averages), 2)
        lost = [i for i, (one, then) in pairs if one is not None and then is None]
        require(
            not lost,
            f"Stage {min(lost, default=0)} has no average, but the one before has; give its decay "
            f"here, too.",
        )

    def _check_kl_warmup(self) -> None:
        """`InputError` for a weight of the latent KL where it is not defined; stages are checked
        each by itself."""
        if self.training.kl_warmup == 0 or self.stages:
            return
        given = f"kl_warmup = {self.training.kl_warmup} was given"
        require(
            self.model.proposal == "independent",
            f"{given} with proposal = {self.model.proposal}, whose draws are weighted jointly; "
            f"leave it out.",
        )
        rules.validate_flags(rules.check_kl_weight(rules.rules_of(self.objective.estimator)))

    def _check_weight_alpha(self) -> None:
        """`InputError` for black-box α where there are no draws of weights to weigh; stages are
        checked each by itself."""
        alpha, k = self.training.weight_alpha, self.objective.k
        if alpha is None:
            return
        given = f"weight_alpha = {alpha} was given"
        require(
            self.model.uncertain_weights != "none",
            f"{given}, but the model's weights are fixed; leave it out, or give "
            f"--uncertain-weights both.",
        )
        require(
            self.training.weight_kl > 0,
            f"{given} without weight_kl, but black-box α holds q(weights) to their prior by it; "
            f"give --weight-kl 1.",
        )
        few = self.objective.backward_draws
        require(
            few is None or few >= k,
            f"{given} with backward_draws = {few}, but the importance samples of one draw of the "
            f"weights are weighted together; give --backward-draws None, or leave weight_alpha "
            f"out.",
        )
        estimator = self.objective.estimator
        require(
            not rules.rules_of(estimator).own_phi,
            f"{given} with estimator = {estimator}, which leads the encoder by a divergence of its "
            f"own, over importance samples under different weights; give reparam, stl or dreg.",
        )
        draws = self.training.weight_groups(k)
        rules.validate_flags(rules.check_weight_draws(draws, k))
        require(
            draws > 1 or alpha == 0,
            f"{given} with 1 draw of the weights, where every α is variational inference; give "
            f"--weight-draws 2 or more with a --k that is a multiple of it, or --weight-alpha 0.",
        )
        try:
            dataclasses.replace(self.objective, k=k // draws, estimator=rules.PLAIN)
        except InputError as error:
            raise InputError(
                f"{given}, which leaves {k // draws} of the k = {k} importance samples to each of "
                f"{draws} draws of the weights: {error}"
            ) from error

    @property
    def has_open_end(self) -> bool:
        """Whether a longer run begins with the same steps, so that more epochs can be added."""
        return self.training.schedule == "constant" and not self.stages

    @property
    def by_stage(self) -> tuple[tuple["RunConfig", int, int], ...]:
        """The settings of each stage, and the epochs that end before it and with it."""
        if not self.stages:
            return ((self, 0, self.training.epochs),)
        each = self._lengths()
        return tuple((self.during(stage, first), first, end) for stage, first, end in each)

    def _lengths(self) -> Iterator[tuple[Stage, int, int]]:
        """Each stage, and the epochs that end before it and with it: at least one, if there are
        enough."""
        shares = [*itertools.accumulate(stage.share for stage in self.stages)]
        n, epochs, first = len(shares), self.training.epochs, 0
        for i, (stage, share) in enumerate(zip(self.stages, shares, strict=True), 1):
            end = max(round(epochs * share / shares[-1]), first + 1)
            end = max(min(end, epochs - (n - i)), first)
            yield stage, first, end
            first = end

    def during(self, stage: Stage, first: int = 0) -> "RunConfig":
        """The configuration with the settings of a stage that begins after `first` epochs, and
        without stages. A weight of the latent KL that has reached 1 is none."""
        training = stage.training_of(self.training)
        if first >= training.kl_warmup:
            training = dataclasses.replace(training, kl_warmup=0)
        return dataclasses.replace(
            self,
            objective=stage.objective_of(self.objective, self.training.weight_draws or 1),
            training=training,
            stages=(),
        )

    def _check_proposal(self) -> None:
        """`InputError` unless the objective and estimator suit importance samples from heads."""
        proposal, weights = self.model.proposal, self.model.proposal_weights
        if proposal == "independent":
            return
        draws = rules.capabilities(proposal, weights)
        few = self.objective.backward_draws
        require(
            not any(rules.check_backward(few, two=False, draws=draws)),
            f"backward_draws = {few} was given with proposal = {proposal}, whose importance "
            f"samples are weighted jointly; leave it out.",
        )
        plain = ObjectiveConfig(k=self.objective.k)
        suited = [e for e in rules.estimators_for(draws) if rules.RULES[e].least_k <= plain.k]
        allowed = [dataclasses.replace(plain, estimator=name) for name in suited]
        require(
            self.objective in allowed,
            f"{self.objective.label} was given with proposal = {proposal} and proposal_weights = "
            f"{weights}, which take {', '.join(sorted(o.label for o in allowed))}; give one.",
        )

    @property
    def label(self) -> str:
        """A name for the trained model: objective, inference, uncertain weights and proposal."""
        uncertain = {"none": "", "both": ", uncertain weights"}
        which, how = self.model.uncertain_weights, self.model.proposal
        ladder = ", ladder" if self.model.inference == "ladder" else ""
        label = self.objective.label + ladder + uncertain.get(which, f", uncertain {which}")
        alpha = self.training.weight_alpha
        label += "" if alpha is None else f" by black-box α = {alpha:g}"
        if how == "independent":
            return label
        return f"{label}, {how} proposal" + {"uniform": ""}.get(
            self.model.proposal_weights, f" by {self.model.proposal_weights} weights"
        )

    def to_toml(self) -> str:
        """The configuration as TOML; fields that are None are left out."""
        import tomli_w

        return tomli_w.dumps(_without_none(dataclasses.asdict(self)))


def _without_none(table: dict[str, object]) -> dict[str, object]:
    return {key: _set(value) for key, value in table.items() if value not in (None, ())}


def _set(value: object) -> object:
    """A value without the entries that are None, in tables and in lists of these."""
    if isinstance(value, dict):
        return _without_none(value)
    if isinstance(value, tuple) and value and isinstance(value[0], dict):
        return [_without_none(entry) for entry in value]
    return value
