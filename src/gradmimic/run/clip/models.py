"""Two-tower models by a word: ``small``, ``hf:…``, ``open_clip:…``; their weights and references.

small                                   the built-in one, for CPUs and examples
hf:<folder or hub id>[@revision]        Hugging Face's CLIPModel or SiglipModel
open_clip:<architecture>[/<tag or file of weights>]
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from gradmimic.checkpoint import read_weights
from gradmimic.direction import Params, choose
from gradmimic.errors import AlignmentError, ConfigError, ReferenceMismatchError, listed
from gradmimic.pair_model import PairModel
from gradmimic.reference import Reference
from gradmimic.rotation import NEAR, nearness
from gradmimic.run.clip.small import open_small

FORMS = (
    "'small', 'hf:<folder or hub id>[@revision]' or "
    "'open_clip:<architecture>[/<pretrained tag or file>]'"
)
# What the last projections are called, each [e, d]; OpenCLIP's bare matrices are [d, e].
_CALLED = {
    "image": ("visual_projection.weight", "visual.proj", "visual.head.proj.weight"),
    "text": (
        "text_projection.weight",
        "text_projection",
        "text.text_projection",
        "text.text_projection.weight",
    ),
}
_NO_WEIGHTS = ("position_ids",)  # buffers that older releases saved too


def open_pair_model(
    spec: str, *, weights: bool = True, seed: int = 0, image_size: int | None = None
) -> PairModel:
    """Open a two-tower model.

    Args:
        spec: one of the forms above.
        weights: read its weights; else fresh ones are drawn. ``small`` has fresh ones only.
        seed: of fresh weights; the same seed gives the same ones.
        image_size: pixels, where it is not the model's own.

    Returns:
        The model, on the CPU.

    Raises:
        ConfigError: there is no such model.
        ReferenceMismatchError: a file of weights does not fit its architecture.
        MissingExtraError: the library it comes from is not installed.

    Example:
        >>> open_pair_model("small", image_size=32).loss
        'clip'
    """
    kind, _, rest = spec.partition(":")
    if spec == "small":
        return open_small(seed=seed, image_size=image_size)
    if kind == "hf" and rest:
        from gradmimic.integrations.hf_clip import open_hf

        source, revision = _revision(rest)
        return open_hf(source, revision=revision, weights=weights, seed=seed, image_size=image_size)
    if kind == "open_clip" and rest:
        from gradmimic.integrations.open_clip import open_model

        architecture, tag = _tag(rest)
        there = tag is not None and Path(tag).exists()
        model = open_model(
            architecture,
            None if there or not weights else tag,
            seed=seed,
            image_size=image_size,
        )
        if there and weights:
            load_weights(model, str(tag))
        return model
    raise ConfigError(f"model={spec!r} is unknown; expected {FORMS}.")


def load_weights(model: PairModel, source: str) -> None:
    """Fill a model with weights.

    Args:
        model: it.
        source: a ``.pt`` or ``.safetensors`` file, such as a run saves; a folder; a hub id; or a
            form of :func:`open_pair_model`.

    Raises:
        ReferenceMismatchError: nothing is there, or it holds other weights than the model's: the
            message lists which.
    """
    tensors, told = _read(source, model)
    wanted = model.model.state_dict()
    prefix = _prefix(tensors, wanted)
    names = {name: prefix + name for name in wanted}
    missing = [name for name, key in names.items() if key not in tensors]
    known = set(names.values())
    surplus = [key for key in tensors if key not in known and not key.endswith(_NO_WEIGHTS)]
    shapes = [
        f"{name} {list(tensors[names[name]].shape)} for {list(own.shape)}"
        for name, own in wanted.items()
        if name not in missing and tensors[names[name]].shape != own.shape
    ]
    problems = {"missing": missing, "unknown to the model": surplus, "of another shape": shapes}
    if any(problems.values()):
        raise ReferenceMismatchError(
            f"the weights at {told} are not those of {model.name}; "
            + "; ".join(f"{what}: {listed(which)}" for what, which in problems.items() if which)
            + f". {len(wanted) - len(missing) - len(shapes)} of {len(wanted)} fit. Expected all "
            "weights of the same architecture; as a reference, where the projections are enough, "
            "it may still do."
        )
    model.model.load_state_dict({name: tensors[key] for name, key in names.items()})


def read_pair_reference(source: str, model: PairModel, params: Params | None = None) -> Reference:
    """Read a better model's weights, those that are scored, and both projections.

    Args:
        source: a ``.pt`` or ``.safetensors`` file; a folder; a hub id ``"owner/name[@revision]"``;
            or a form of :func:`open_pair_model`.
        model: the model being trained.
        params: what is scored; the last projections by default.

    Returns:
        The reference, under the names that the model has, with what ``align="rotation"`` must know.
        Of a ``.safetensors`` file nothing else is read.

    Raises:
        ReferenceMismatchError: nothing is there; or some of these weights are missing, or of
            another shape: the message lists which. The width of the space that both projections
            share may differ.
    """
    tensors, told = _read(source, model)
    here = model.model
    scored = model.scored() if params is None else [*choose(here, params).parameters]
    wanted = dict.fromkeys([*scored, *model.scored()])
    prefix = _prefix(tensors, wanted)
    found: dict[str, Tensor] = {}
    renamed = []
    for name in wanted:
        if prefix + name in tensors:
            found[name] = tensors[prefix + name]
        elif (other := _by_another_name(tensors, name, model)) is not None:
            key, found[name] = other
            renamed.append(f"{key} as {name}")
    missing = [name for name in scored if name not in found]
    if missing:
        like = [key for key in tensors if "proj" in key.rpartition(".layers.")[2].lower()]
        raise ReferenceMismatchError(
            f"the reference {told} lacks {len(missing)} of the {len(scored)} weights that are "
            f"scored in {model.name}: {listed(missing)}. It holds {len(tensors)} weights, such as "
            f"{listed(like or tensors, most=4)}. Expected the same names, or the two projections "
            "under the names of transformers or OpenCLIP; score what both have with params."
        )
    if renamed:
        told += f", with {' and '.join(renamed)}"
    both = all(name in found for name in model.scored())
    return Reference(found, told, tuple(model.scored()) if both else (), model.fixed)


def pick_pair_alignment(
    reference: Reference, model: PairModel, params: Params | None = None
) -> tuple[Literal["none", "rotation"], str]:
    """Tell how a reference is brought near: by rotation, unless it is near already.

    Args:
        reference: of :func:`read_pair_reference`.
        model: the model being trained, as it is now.
        params: what is scored; the last projections by default.

    Returns:
        The alignment, and why, in a sentence.

    Raises:
        ReferenceMismatchError: the reference does not fit.

    Example:
        >>> model = open_pair_model("small")
        >>> weights = {name: model.model.get_parameter(name) for name in model.scored()}
        >>> align, note = pick_pair_alignment(Reference(weights, "itself", tuple(weights)), model)
        >>> align, note[-49:]
        ('none', 'is near already: 1.00 of what turning could reach')
    """
    if reference.fixed:
        return "none", f"align: none, since {reference.fixed}"
    subset = choose(model.model, model.scored() if params is None else params)
    try:
        near = nearness(model.model, subset, reference)
    except AlignmentError as error:
        return "none", f"align: none, since what is scored cannot be turned: {error}"
    told = f"{near:.2f} of what turning could reach"
    if near >= NEAR:
        return "none", f"align: none, since the reference is near already: {told}"
    return "rotation", f"align: rotation, since the reference is from elsewhere: {told} is there"


def _read(source: str, model: PairModel) -> tuple[Mapping[str, Tensor], str]:
    """Return the weights at a source, and where they came from in words."""
    kind, _, rest = source.partition(":")
    if Path(source).exists():
        return read_weights(source)
    if kind == "open_clip":
        tag = _tag(rest)[1]
        if tag is None:
            raise ReferenceMismatchError(
                f"{source} names an architecture without weights. Expected "
                "'open_clip:<architecture>/<pretrained tag or file>'."
            )
        if Path(tag).exists():
            return read_weights(tag)
        return open_pair_model(source).model.state_dict(), source
    if source == "small":
        raise ReferenceMismatchError(
            "'small' has fresh weights only. Expected a file of its weights, such as a run saves."
        )
    path, revision = _revision(rest if kind == "hf" and rest else source)
    return read_weights(path, revision)


def _revision(source: str) -> tuple[str, str | None]:
    """Split off ``@revision``, unless there is a file of the whole name."""
    path, at, revision = source.rpartition("@")
    return (source, None) if not at or Path(source).exists() else (path, revision)


def _tag(rest: str) -> tuple[str, str | None]:
    """Split OpenCLIP's architecture from its pretrained tag, or a path."""
    if rest.startswith(("hf-hub:", "local-dir:")):  # OpenCLIP's own, with their weights
        return rest, None
    architecture, _, tag = rest.partition("/")
    return architecture, tag or None


def _prefix(tensors: Iterable[str], wanted: Iterable[str]) -> str:
    """Return what stands before most of the wanted names, as wrappers put it."""
    tails = set(wanted)
    seen: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in tails:
                seen["".join(f"{part}." for part in parts[:i])] += 1
    return min(seen, key=lambda prefix: (-seen[prefix], len(prefix)), default="")


def _by_another_name(
    tensors: Mapping[str, Tensor], name: str, model: PairModel
) -> tuple[str, Tensor] | None:
    """Find a projection under the name that another library gives it, turned as it is here."""
    for tower, called in _CALLED.items():
        if name not in called or name not in model.scored(tower):  # type: ignore[arg-type]
            continue
        for other in called:
            key = next((k for k in tensors if k == other or k.endswith(f".{other}")), None)
            if key is not None:
                found = tensors[key]
                same = name.endswith(".weight") == other.endswith(".weight")
                return key, found if same or found.ndim != 2 else found.T
    return None
