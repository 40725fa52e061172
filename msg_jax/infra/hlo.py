"""Reads the text of a compiled program: how often each instruction runs, what it moves, and its collectives."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import re
from typing import NamedTuple

from msg_jax.infra.operations import pairs

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "bf16": 16}  # other type names contain their width: f32, s8, u64, f8e4m3fn
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_CALLED_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHAIN = re.compile(r"\bchannel_id=\d+|\bchain_id=\"\d+\"")
_WORKSPACE = re.compile(r"\b[su]8\[\d+\]\S*")
_CONTRACTED = re.compile(r"lhs_contracting_dim(?:s=\{([\d,]*)\}|ensions\":\[([\d,\"]*)\])")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"(\w+)=([-\dx_]+)")
_IN_PLACE = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')
_PRECISION = re.compile(r'operand_precision"?[=:][{\["]+(high(?:est)?)\b', re.IGNORECASE)
_PLACE = re.compile(r"\bindex=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_WORKLESS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
             "partition-id", "replica-id", "iota", "opt-barrier")


class Array(NamedTuple):
    """An array in an instruction's type."""

    bytes: int
    padded: int  # bytes in the layout of the device, whose tiles may not divide the array
    in_memory: bool  # in the device's main memory, not in a core's own
    shape: tuple[int, ...]
    type: str = ""  # as XLA calls it: bf16, f32


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]  # of the result
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def op_name(self) -> str:
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


class Collective(NamedTuple):
    """A collective operation, and how often a run of the program executes it."""

    kind: str
    bytes: int  # of the whole tensor that one group of devices gathers, reduces or exchanges, as one device sees it
    wire: float  # bytes that one device receives, for the usual ring algorithms
    group: int  # devices that take part
    times: int
    tensor: str  # the part of the model that it belongs to


@dataclasses.dataclass(frozen=True)
class Module:
    """The computations of a program by name."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int

    @functools.cached_property
    def times(self) -> Mapping[str, int]:
        """How often a run of the program executes each computation; what `reduce` and the like apply is left out."""
        return self._executions(fused=True)

    @functools.cached_property
    def top_level_times(self) -> Mapping[str, int]:
        """The same for computations whose results are in memory: the entry, and what loops, branches and calls run."""
        return self._executions(fused=False)

    def _executions(self, fused: bool) -> Mapping[str, int]:
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            if name in order or name not in self.computations:
                return
            for called, _ in self._calls(name, fused):
                visit(called)
            order[name] = None

        visit(self.entry)
        counts = dict.fromkeys(order, 0) | {self.entry: 1}
        for name in reversed(order):
            for called, trips in self._calls(name, fused):
                if called in counts:
                    counts[called] += counts[name] * trips
        return counts

    def _calls(self, name: str, fused: bool) -> Iterator[tuple[str, int]]:
        """The computations that one computation runs, and how often each."""
        for instruction in self.computations[name].values():
            code, text = instruction.opcode, instruction.attributes
            if "=" not in text or (code == "fusion" and not fused):
                continue
            trips = self._trips(instruction) if code == "while" else 1
            for how, called in _CALLED.findall(text):
                if how != "to_apply" or code == "call":
                    yield called, trips
            for names in _CALLED_LISTS.findall(text):
                if fused or code in ("conditional", "call"):
                    yield from ((each.strip().lstrip("%"), 1) for each in names.split(","))

    def _trips(self, loop: Instruction) -> int:
        """The trip count that XLA notes or, failing that, the condition's one integer by the step of its counter; else 1."""
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        called = dict(_CALLED.findall(loop.attributes))
        condition, body = (self.computations.get(called.get(part, ""), {}) for part in ("condition", "body"))
        limits = set(_constants(condition, condition))
        return -(-limits.pop() // _step(condition, body)) if len(limits) == 1 else 1

    def collectives(self) -> list[Collective]:
        """All collectives. Of a pair of start and done, the latter counts.

        A TPU spreads one collective over a chain of fusions, each of which repeats it; it counts once.
        """
        found, chains = [], set()
        for name, times in self.times.items():
            inside = self.computations[name]
            for line in inside.values():
                kind = line.opcode.removesuffix("-done")
                if kind not in COLLECTIVES:
                    continue
                start = inside.get(line.operands[0]) if line.opcode != kind and line.operands else None
                text = line.attributes if start is None else start.attributes
                if "chain_id" in text:
                    chain = (kind, *_CHAIN.findall(text))
                    if chain in chains:
                        continue
                    chains.add(chain)
                label = line.op_name or (start.op_name if start else "") or self._callers.get(name, "")
                found.append(self._collective(name, kind, line, text, times, shorten(label)))
        return found

    @functools.cached_property
    def _callers(self) -> Mapping[str, str]:
        """The `op_name` of an instruction that calls each computation."""
        return {
            called: line.op_name for inside in self.computations.values() for line in inside.values()
            for _, called in _CALLED.findall(line.attributes) if line.op_name
        }

    def _collective(
        self, computation: str, kind: str, line: Instruction, attributes: str, times: int, tensor: str
    ) -> Collective:
        group, result = self._group(attributes), sum(array.bytes for array in line.arrays)
        whole = result * group if kind == "reduce-scatter" else result
        if kind == "all-reduce" and "all-reduce-scatter" in computation:  # a TPU's reduce-scatter: the reduction, then a slice
            kind = "reduce-scatter"
        passes = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1}.get(kind, (group - 1) / group)
        return Collective(kind, whole, whole * passes, group, times, tensor)

    def _group(self, attributes: str) -> int:
        """The number of devices in each of the `replica_groups`, in any of XLA's three notations; all devices if not given."""
        if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
            return int(found[2])
        if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
            return len(found[1].split(","))
        if found := re.search(r"replica_groups=\w*\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
            sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", found[2]) if axis in sizes)
        return self.devices

    def operations(self) -> int:
        """Floating-point operations of one device in products and convolutions, also in a GPU's libraries.

        Those of kernels (Pallas) are not seen.
        """
        return sum(self.products().values())

    def products(self, type: str = "") -> Mapping[str, int]:
        """`operations` by part of the model; with a type, for example f32, only of products of such arrays."""
        found: dict[str, int] = {}
        for name, times in self.times.items():
            inside = self.computations[name]
            for line in inside.values():
                size = times * _operations(inside, line)
                arrays = (array for operand in line.operands if operand in inside for array in inside[operand].arrays)
                if size and (not type or any(array.type == type for array in arrays)):
                    part = self._part(name, line)
                    found[part] = found.get(part, 0) + size
        return found

    def exact_products(self) -> Mapping[str, int]:
        """Operations of one device in products whose precision is `high` or `highest`, by that precision."""
        found: dict[str, int] = {}
        for name, times in self.times.items():
            for line in self.computations[name].values():
                if precision := _PRECISION.search(line.attributes):
                    key = precision[1].lower()
                    found[key] = found.get(key, 0) + times * _operations(self.computations[name], line)
        return found

    def _part(self, computation: str, line: Instruction) -> str:
        """The part of the model that an instruction belongs to."""
        return shorten(line.op_name or self._callers.get(computation, ""))

    def traffic(self) -> tuple[int, int]:
        """Bytes that instructions read from and write to the memory of one device, and the share of them that is padding.

        A slice of an array counts as what it takes, also inside a fusion. Caches are not considered.
        """
        moved = padding = 0
        for _, _, array, count in self._moves():
            moved += round(count * array.padded)
            padding += round(count * (array.padded - array.bytes))
        return moved, padding

    def padded(self, factor: float = 2.0) -> Mapping[str, int]:
        """Of the traffic, the bytes of arrays that tiles make more than `factor` times as large, by the part of the model."""
        found: dict[str, int] = {}
        for computation, line, array, count in self._moves():
            if array.padded > factor * array.bytes:
                part = self._part(computation, line)
                found[part] = found.get(part, 0) + round(count * array.padded)
        return found

    def _moves(self) -> Iterator[tuple[str, Instruction, Array, float]]:
        """Computation, instruction, and an array that it reads or writes in memory, with how often all of it is moved."""
        for name, times in self.top_level_times.items():
            for line in self.computations[name].values():
                for array, share in self._touched(self.computations[name], line):
                    yield name, line, array, times * share

    def _touched(self, inside: Computation, line: Instruction) -> Iterator[tuple[Array, float]]:
        """Arrays in memory that an instruction reads or writes, and the share of each."""
        if line.opcode in _WORKLESS or line.opcode.endswith("-start") or _IN_PLACE.search(line.attributes):
            return
        reads = [(array, size) for number in range(len(line.operands)) for array, size in self._read(inside, line, number)]
        if line.opcode.endswith("-done"):  # its start names what is read
            start = inside.get(line.operands[0]) if line.operands else None
            sizes = [array.bytes for array in line.arrays] if line.opcode == "slice-done" else None
            reads = [
                (array, sum(sizes) if sizes else array.bytes)
                for name in (start.operands if start else ()) if name in inside for array in inside[name].arrays
            ]
        for array, size in (*reads, *zip(line.arrays, self._written(inside, line))):
            if array.in_memory:
                yield array, min(1.0, size / max(array.bytes, 1))

    def _read(self, inside: Computation, line: Instruction, number: int) -> Iterator[tuple[Array, int]]:
        """The arrays of an operand, and the bytes that the instruction reads of each."""
        part = self._read_part(line, number)
        operand = inside.get(line.operands[number])
        for array in operand.arrays if operand else ():
            yield array, array.bytes if part is None else part

    def _read_part(self, line: Instruction, number: int) -> int | None:
        """The bytes that an instruction reads of an operand of which it only takes slices; None if it reads all of it."""
        if line.opcode in ("dynamic-slice", "slice", "gather") and number == 0:
            return _sum(line.arrays)
        if line.opcode == "dynamic-update-slice" and number == 0:
            return 0
        return self._parameter_parts(_called(line)).get(number) if line.opcode == "fusion" else None

    def _parameter_parts(self, name: str) -> Mapping[int, int]:
        """`_read_part` of those parameters of a fusion's computation of which only slices are taken."""
        if name not in self._parts_found:
            fused = self.computations.get(name, {})
            users: dict[str, list[tuple[Instruction, int]]] = {}
            for line in fused.values():
                for number, operand in enumerate(line.operands):
                    users.setdefault(operand, []).append((line, number))

            def part(value: str) -> int | None:
                parts = [
                    part(user.name) if user.opcode == "bitcast" else self._read_part(user, number)
                    for user, number in users.get(value, [])
                ]
                return None if not parts or None in parts else sum(filter(None, parts))

            found = {int(line.operands[0]): part(line.name) for line in fused.values() if line.opcode == "parameter"}
            self._parts_found[name] = {number: size for number, size in found.items() if size is not None}
        return self._parts_found[name]

    @functools.cached_property
    def _parts_found(self) -> dict[str, Mapping[int, int]]:
        return {}

    def _written(self, inside: Computation, line: Instruction) -> list[int]:
        """The bytes that an instruction writes of each of its arrays: of an update in place, only those of the update."""
        whole = [array.bytes for array in line.arrays]
        sources = [inside.get(name) for name in line.operands]
        found = whole
        if line.opcode == "dynamic-update-slice" and len(sources) > 1 and sources[1]:
            found = [_sum(sources[1].arrays)]
        elif line.opcode == "fusion" and (root := _root(self.computations.get(_called(line), {}))):
            found = self._written(self.computations[_called(line)], root)
        elif line.opcode == "bitcast" and sources and sources[0]:
            found = self._written(inside, sources[0]) if sources[0].opcode != "parameter" else whole
        elif line.opcode == "tuple" and all(sources):
            found = [size for source in sources if source for size in self._written(inside, source)]
        return found if len(found) == len(whole) else whole


def _called(line: Instruction) -> str:
    """The computation of a fusion."""
    return dict(_CALLED.findall(line.attributes)).get("calls", "")


def _constants(names: Iterable[str], inside: Computation) -> Iterator[int]:
    """The integers among the instructions of these names."""
    for name in names:
        line = inside.get(name)
        if line and line.opcode == "constant" and line.operands and line.operands[0].isdecimal():
            yield int(line.operands[0])


def _step(condition: Computation, body: Computation) -> int:
    """What a turn of the body adds to the counter that the condition compares: a TPU takes two steps of a ring in one turn."""
    compared, result = _root(condition), _root(body)
    for name in compared.operands if compared else ():
        place = _PLACE.search(condition[name].attributes) if name in condition else None
        if place and result and result.opcode == "tuple":
            counted = body.get(result.operands[int(place[1])])
            if counted and counted.opcode == "add":
                return next(_constants(counted.operands, body), 1)
    return 1


def _root(inside: Computation) -> Instruction | None:
    return next((line for line in inside.values() if line.is_root), None)


def _operations(inside: Computation, line: Instruction) -> int:
    """Of one instruction; a multiplication and an addition count as two."""
    if line.opcode not in ("dot", "convolution", "custom-call"):
        return 0
    left, right, *_ = (*(inside[name].arrays for name in line.operands if name in inside), (), ())
    if not (left and right and line.arrays):
        return 0
    lhs, rhs, out = left[0].shape, right[0].shape, line.arrays[0].shape
    if labels := _LABELS.search(line.attributes):
        if "convBackwardInput" in line.attributes:  # described by the convolution whose gradient it is
            lhs, out = out, lhs
        elif "convBackwardFilter" in line.attributes:
            rhs, out = out, rhs
        return _of_convolution(line.attributes, labels.groups(), lhs, rhs, out)
    if contracted := _CONTRACTED.search(line.attributes):
        axes = re.findall(r"\d+", contracted[1] or contracted[2] or "")
        return 2 * math.prod(out) * math.prod(lhs[int(axis)] for axis in axes)
    return 0


def _of_convolution(
    attributes: str, labels: Sequence[str], lhs: Sequence[int], rhs: Sequence[int], out: Sequence[int]
) -> int:
    """`operations.count` of a convolution, whose labels say what each dimension is: b, f, i, o, or a number for space."""
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = {name: value.split("x") for name, value in _WINDOW.findall(window[1])} if window else {}
    of_lhs, of_rhs, of_out = labels

    def field(name: str, default: str) -> list[str]:
        return fields.get(name, [default] * (len(of_lhs) - 2))

    windows = zip(field("stride", "1"), field("pad", "0_0"), field("lhs_dilate", "1"), field("rhs_dilate", "1"))
    met = math.prod(
        pairs(
            lhs[of_lhs.index(str(i))], rhs[of_rhs.index(str(i))], out[of_out.index(str(i))], int(stride),
            [int(size) for size in pad.split("_")], int(spread), int(dilation),
        )
        for i, (stride, pad, spread, dilation) in enumerate(windows)
    )
    return 2 * out[of_out.index("b")] * rhs[of_rhs.index("i")] * rhs[of_rhs.index("o")] * met


def _sum(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays)


def parse(text: str, devices: int = 1) -> Module:
    """Parse `Compiled.as_text()` of a program for so many devices."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            head = _COMPUTATION.match(line)
            if head:
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
            continue
        if found := _INSTRUCTION.match(line):
            root, name, kind, opcode, rest = found.groups()
            end = _closing(rest)
            inside = rest[:end]
            if opcode == "custom-call" and kind.startswith("("):  # a library's workspace, which it need not fill
                kind = _WORKSPACE.sub("", kind)
            operands = _NAME.findall(inside) if opcode not in ("constant", "parameter") else [inside]
            current[name] = Instruction(name, _arrays(kind), opcode, tuple(operands), rest[end + 1 :], bool(root))
    return Module(computations, entry, devices)


def _closing(text: str) -> int:
    """The place of the bracket that closes the operands at the start of `text`."""
    depth = 0
    for place, letter in enumerate(text):
        if letter == "(":
            depth += 1
        elif letter == ")":
            if not depth:
                return place
            depth -= 1
    return len(text)


@functools.lru_cache(maxsize=65536)
def _arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, for example `(bf16[16,448]{1,0:T(8,128)(2,1)}, f32[])`."""
    found = []
    for name, dims, order, layout in _ARRAY.findall(text):
        width = _BITS.get(name) or int((re.search(r"\d+", name) or ["0"])[0])
        sizes = [int(size) for size in dims.split(",") if size]
        physical = [sizes[int(place)] for place in reversed(order.split(","))] if order and sizes else list(sizes)
        if tile := re.search(r"T\(([\d,]+)\)", layout):
            units = [int(unit) for unit in tile[1].split(",")]
            for place, unit in zip(range(len(physical) - 1, -1, -1), reversed(units)):
                physical[place] = -(-physical[place] // unit) * unit
        found.append(Array(
            -(-math.prod(sizes) * width // 8), -(-math.prod(physical) * width // 8), not re.search(r"S\([1-9]", layout),
            tuple(sizes), name,
        ))
    return tuple(found)


def shorten(op_name: str) -> str:
    """The module path in a name that JAX gives an operation, without transformations, primitive and numbers of blocks.

    >>> shorten("jit(step)/transpose(jvp(MMDiT.velocity))/joint_3/latent/qkv/dense/dot_general")
    'joint_*/latent/qkv/dense'
    """
    names = re.sub(r"^[^(/]*\([^)]*\)/\((.*)\)$", r"\1", op_name).split(":")  # jit(step)/(one:another), of combined operations
    paths = dict.fromkeys(filter(None, map(_path, names)))
    best = next((path for path in paths if "/" in path), next(iter(paths), "?"))
    return f"{best} and others" if len(paths) > 1 else best


def _path(name: str) -> str:
    if "[" in name:  # an argument: state.params['joint_3']['latent']['qkv']
        path = [name.partition("[")[0], *re.findall(r"\['?([^\]']+)'?\]", name)]
    else:
        parts = re.split(r"/(?![^(]*\))", name)
        path = [part for part in parts[:-1] if "(" not in part and part not in ("while", "body", "closed_call", "checkpoint")]
        path = path or parts[-1:]
    return "/".join(re.sub(r"_\d+$", "_*", part) for part in path)
