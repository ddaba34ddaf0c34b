"""A plan in plain words: what happens to which experts, on which tokens, and to the others and the weights."""

from __future__ import annotations

from collections.abc import Sequence

from moeworks.address import Address, NeuronAddress
from moeworks.plan.clauses import listed
from moeworks.plan.evidence import Evidence
from moeworks.plan.files import plan_hash
from moeworks.plan.gate import gate_in_words
from moeworks.plan.schema import Add, Demote, Mask, Neurons, Operation, Plan, Promote, Replay, Scale, TopK
from moeworks.where import Where

__all__ = ["explain", "in_short"]

SHOWN = 20  # neurons that a sentence names; the plan names all


def explain(plan: Plan) -> str:
    """Return what a plan does, where it comes from and what is known of it, one line each."""
    lines = [plan.description] if plan.description else []
    lines.append(_model(plan))
    if not plan.operations:
        lines.append("It has no operations: the model runs as it is, to the bit.")
    else:
        lines.append(f"It holds for {_tokens(plan.where)}.")
        lines += [] if plan.gate is None else [gate_in_words(plan.gate)]
    for number, operation in enumerate(plan.operations, 1):
        narrower = "" if operation.where.everything else f" Only for {_tokens(operation.where)}."
        lines.append(f"{number}. {_sentences(operation)}{narrower}")
    if plan.protected:
        may = "may" if plan.allow_protected else "must not"
        lines.append(f"This plan {may} turn down what is protected: {_experts(plan.protected)}.")
    if plan.weakens_safety:
        lines.append("It is meant to weaken a safety behaviour.")
    lines.append(_origin(plan))
    lines += _evidence(plan.evidence)
    return "\n".join(lines)


def in_short(operation: Operation) -> str:
    """Return what an operation does to one of its experts or neurons, in a few words."""
    match operation:
        case Promote() | Demote():
            return f"{operation.op}, margin {operation.margin:g}"
        case Add():
            return f"add {operation.strength:+g} {operation.unit}"
        case Mask():
            return f"mask{', refilled' if operation.refill else _total(operation)}"
        case Scale():
            return f"scale by {operation.factor:g}{_total(operation)}"
        case TopK():
            return f"top_k {operation.k}"
        case Replay():
            return f"replay {operation.trace}{'' if operation.weights else ', ids only'}"
        case Neurons():
            return f"{operation.site}: {_change(operation)}"


def _total(operation: Mask | Scale) -> str:
    return ", total weight kept" if operation.renormalise else ", total weight not kept"


def _sentences(operation: Operation) -> str:
    experts = _experts(listed(operation))
    match operation:
        case Promote():
            return (
                f"Promote {experts}. They are always chosen, with logits {operation.margin:g} above the largest. "
                "As many of the router's own choices give way; all weights follow from the router's rule."
            )
        case Demote():
            return (
                f"Demote {experts}. They are never chosen, with logits {operation.margin:g} below the smallest. "
                "Where they would have run, the router's next best do; all weights follow from the router's rule."
            )
        case Add():
            unit = {
                "logit": "to the logits",
                "std": "standard deviations of the token's logits to the logits",
                "spread": "times the token's range of logits (maximum - minimum) to the logits",
            }[operation.unit]
            more = operation.strength >= 0
            return (
                f"{'Add' if more else 'Subtract'} {abs(operation.strength):g} {unit} of {experts}. They are chosen "
                f"{'more' if more else 'less'} easily; choice and weights of all follow from the router's rule."
            )
        case Mask(refill=True):
            return (
                f"Mask {experts}. They are never chosen; the router's next best take their places, and the weights "
                "follow from the router's rule as if the masked ones did not exist."
            )
        case Mask():
            grow, stay = "the others' weights grow to the token's former total", "the others' weights stay"
            rest = grow if operation.renormalise else stay
            return f"Mask {experts} after the choice. Nothing takes their places; {rest}."
        case Scale():
            kept = "change so that the token's total stays" if operation.renormalise else "stay"
            return (
                f"Scale {experts}: wherever they are chosen, their weight is multiplied by {operation.factor:g}. "
                f"The choice stays; the others' weights {kept}."
            )
        case TopK():
            return f"Let {operation.k} experts run for a token instead of the model's own number."
        case Replay():
            what = "experts and weights" if operation.weights else "experts (not the weights)"
            return f"Use the {what} that the trace {operation.trace} has for a token in place of the router's decision."
        case Neurons():
            site = {
                "gate": "pre-activation of the gate",
                "up": "pre-activation of the up projection",
                "key": "key (what the down projection reads)",
            }[operation.site]
            return (
                f"Inside {experts}: of {_neurons(operation.neurons)}, the {site} is changed wherever their expert runs "
                f"({_change(operation)}). Which experts run in these layers stays, and so do their weights."
            )


def _change(operation: Neurons) -> str:
    """Return the formula with its numbers: one number, or the range of those of all neurons."""
    numbers = {name: _range(values) for name, values in operation.numbers().items()}
    match operation.action:
        case "zero":
            return "set to 0"
        case "scale":
            return f"times {numbers['factor']}"
        case "reflect":
            return f"mirrored about {numbers['mean']}"
        case "clamp":
            return f"set to {numbers['value']}"
        case "adjust":
            return (
                f"mirrored, by chance, into a mean of {numbers['other_mean']} where it looks like one of "
                f"{numbers['mean']}"
            )


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}, each its own"


def _neurons(neurons: Sequence[NeuronAddress]) -> str:
    names = ", ".join(map(str, sorted(neurons)[:SHOWN]))
    more = f", … and {len(neurons) - SHOWN} more" if len(neurons) > SHOWN else ""
    return f"neuron {names}" if len(neurons) == 1 else f"{len(neurons)} neurons ({names}{more})"


def _experts(addresses: Sequence[Address]) -> str:
    layers: dict[int, list[int]] = {}
    for layer, expert in sorted(addresses):
        layers.setdefault(layer, []).append(expert)
    names = ", ".join(f"L{layer}.E{expert}" for layer, experts in layers.items() for expert in experts)
    if len(addresses) == 1:
        return f"expert {names}"
    return f"{len(addresses)} experts in {len(layers)} layer{'s' * (len(layers) > 1)} ({names})"


def _tokens(where: Where) -> str:
    return "all tokens" if where.everything else f"tokens with {where}"


def _model(plan: Plan) -> str:
    model = plan.header.model
    if model is None:
        return f"Plan {plan_hash(plan)}, for no model in particular."
    sizes = sorted({(shape.top_k, shape.experts) for shape in model.layers})
    routers = " and ".join(f"top {k} of {experts}" for k, experts in sizes)
    return (
        f"Plan {plan_hash(plan)} for {model.name} ({model.family}, {len(model.layers)} layers with experts, {routers}; "
        f"weights {model.weight_hash})."
    )


def _origin(plan: Plan) -> str:
    origin = plan.provenance
    if not origin.method:
        return "It was written by hand."
    if origin.method == "compose":
        return f"It is composed of plans {', '.join(part['hash'] for part in origin.options['plans'])}."
    contrast = f", '{origin.contrast}' against '{origin.against}'" if origin.contrast or origin.against else ""
    shown = {name: f"{len(v)} settings" if name == "tried" else v for name, v in origin.options.items()}
    options = ", ".join(f"{name}={value}" for name, value in shown.items() if value not in (None, {}, 0))
    return f"It comes from {origin.method}{contrast}{f' ({options})' if options else ''}."


def _evidence(evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return ["No evidence: what it does to the model's behaviour has not been measured."]
    effect, excess = evidence.effect, evidence.excess
    lines = [
        f"Evidence: {evidence.verdict}. On {evidence.items} items ({evidence.documents} documents) of "
        f"{evidence.probe}, {evidence.split}, {evidence.metric} goes from {evidence.before:.4g} to "
        f"{evidence.after:.4g}: {effect.value:+.4g} ({effect.low:+.4g} to {effect.high:+.4g}); "
        f"expected {evidence.expected}.",
    ]
    if evidence.controls:
        effects = ", ".join(f"{control.name} {control.effect:+.4g}" for control in evidence.controls)
        lines.append(
            f"Other experts do: {effects}. Beyond random experts: {excess.value:+.4g} ({excess.low:+.4g} to "
            f"{excess.high:+.4g})."
        )
    if evidence.damage is not None:
        lines.append(f"On neutral text the model changes by {evidence.damage.divergence:.4g} nats a token.")
    return lines + [f"- {reason}" for reason in evidence.reasons]
