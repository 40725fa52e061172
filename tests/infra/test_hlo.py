"""Compiled programs as text, in the manner of each compiler, and compiled here for a mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from msg_jax.infra import hlo, operations
from msg_jax.infra import mesh as mesh_lib

TPU = """HloModule jit_step, is_scheduled=true

%sum (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %add = bf16[] add(%a, %b)
}

%gather.start (p.1: bf16[112,128]) -> bf16[448,128] {
  %p.1 = bf16[112,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[448,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="3"}, \
metadata={op_name="jit(step)/transpose(jvp(MMDiT.velocity))/fused_2/latent/qkv/dense/dot_general"}
}

%gather.step (p.2: bf16[112,128]) -> bf16[448,128] {
  %p.2 = bf16[112,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[448,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.2), channel_id=7, \
replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="3"}
}

%all-reduce-scatter.5 (p.3: bf16[448,128]) -> bf16[112,128] {
  %p.3 = bf16[448,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[448,128]{1,0:T(8,128)(2,1)} all-reduce(%p.3), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%sum
  %zero = u32[] constant(0)
  ROOT %slice = bf16[112,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={112,128}
}

ENTRY %main_spmd (x: bf16[112,128], y: f32[8,3]) -> bf16[112,128] {
  %x = bf16[112,128]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="state.params['fused_2']['kernel']"}
  %y = f32[8,3]{1,0:T(8,128)} parameter(1)
  %begin = bf16[448,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%gather.start
  %next = bf16[448,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%gather.step
  %negated = f32[8,3]{1,0:T(8,128)} negate(%y)
  %grad = bf16[448,128]{1,0:T(8,128)(2,1)} copy(%next)
  ROOT %scattered = bf16[112,128]{1,0:T(8,128)(2,1)} fusion(%grad), kind=kCustom, calls=%all-reduce-scatter.5, \
metadata={op_name="jit(step)/transpose(jvp(MMDiT))/joint_0/text.after/mlp/w1/dense/dot_general"}
}
"""

GPU = """HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%wrapped (p: f32[64,32]) -> f32[8,32] {
  %p = f32[64,32]{1,0} parameter(0)
  ROOT %rs = f32[8,32]{1,0} reduce-scatter(%p), channel_id=3, replica_groups=[2,8]<=[16], dimensions={0}, to_apply=%sum
}

%body (state: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %state = (s32[], f32[64,32]{1,0}) parameter(0)
  %carry = f32[64,32]{1,0} get-tuple-element(%state), index=1
  %begin = ((f32[64,32]{1,0}), f32[8,32]{1,0}) async-start(%carry), calls=%wrapped
  %end = f32[8,32]{1,0} async-done(%begin)
  %gather = (f32[8,32]{1,0}, f32[64,32]{1,0}) all-gather-start(%end), channel_id=4, replica_groups=[2,8]<=[16], dimensions={0}
  %gathered = f32[64,32]{1,0} all-gather-done(%gather), metadata={op_name="jit(step)/while/body/closed_call/w2/dot_general"}
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %both = (s32[], f32[64,32]{1,0}) tuple(%i, %gathered)
}

%condition (state.1: (s32[], f32[64,32])) -> pred[] {
  %state.1 = (s32[], f32[64,32]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(21)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (x: f32[64,32]) -> f32[64,32] {
  %x = f32[64,32]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[64,32]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[64,32]{1,0}) while(%first), condition=%condition, body=%body, NOTE
  %last = f32[64,32]{1,0} get-tuple-element(%loop), index=1
  %sum.start = f32[64,32]{1,0} all-reduce-start(%last), channel_id=5, replica_groups={}, to_apply=%sum
  ROOT %sum.done = f32[64,32]{1,0} all-reduce-done(%sum.start)
}
"""


def test_a_collective_of_a_tpu_in_several_fusions_counts_once():
    found = {each.kind: each for each in hlo.parse(TPU, devices=4).collectives()}
    size = 448 * 128 * 2
    assert found["all-gather"] == ("all-gather", size, size * 3 / 4, 4, 1, "fused_*/latent/qkv/dense")
    assert found["reduce-scatter"] == ("reduce-scatter", size, size * 3 / 4, 4, 1, "joint_*/text.after/mlp/w1/dense")
    assert len(hlo.parse(TPU, devices=4).collectives()) == 2


def test_traffic_is_that_of_the_main_memory_with_padded_tiles():
    """Of (8, 3) float32, a tile has 8 x 128. Results with S(1) stay in the core's own memory; fusions read x twice."""
    x, grad, tile = 112 * 128 * 2, 448 * 128 * 2, 8 * 128 * 4
    moved, padding = hlo.parse(TPU, devices=4).traffic()
    assert moved == 2 * x + 2 * tile + grad + (grad + x)
    assert padding == 2 * (tile - 8 * 3 * 4)


@pytest.mark.parametrize(("note", "times"), [
    ('backend_config={"known_trip_count":{"n":"20"}}', 20),
    ("metadata={}", 21),  # then the condition's limit
])
def test_pairs_of_start_and_done_and_loops(note, times):
    found = {each.kind: each for each in hlo.parse(GPU.replace("NOTE", note), devices=16).collectives()}
    size = 64 * 32 * 4
    assert found["all-gather"] == ("all-gather", size, size * 7 / 8, 8, times, "w2")
    assert found["reduce-scatter"] == ("reduce-scatter", size, size * 7 / 8, 8, times, "?")
    assert found["all-reduce"] == ("all-reduce", size, size * 2 * 15 / 16, 16, 1, "?")


def test_a_loop_whose_counter_takes_two_steps_a_turn():
    text = GPU.replace("ROOT %both = (s32[], f32[64,32]{1,0}) tuple(%i, %gathered)", """%two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  ROOT %both = (s32[], f32[64,32]{1,0}) tuple(%next, %gathered)""")
    found = {each.kind: each for each in hlo.parse(text, devices=16).collectives()}
    assert found["all-gather"].times == 11 and found["all-reduce"].times == 1


@pytest.mark.parametrize(("name", "short"), [
    ("jit(step)/transpose(jvp(MMDiT.velocity))/joint_3/latent/qkv/dense/dot_general", "joint_*/latent/qkv/dense"),
    ("jit(step)/jvp(SFCAVP)/while/body/checkpoint/stage_2/conv/conv_general_dilated", "stage_*/conv"),
    ("state.params['joint_3']['latent']['kernel']", "state.params/joint_*/latent/kernel"),
    ("jit(step)/reduce_sum", "reduce_sum"),
    ("jit(step)/(reduce_sum:transpose(jvp(MMDiT))/text_pooled/dense/dot_general:transpose(jvp(MMDiT))/w1/conv/add)",
     "text_pooled/dense and others"),
    ("", "?"),
])
def test_names_are_module_paths(name, short):
    assert hlo.shorten(name) == short


def test_a_program_for_eight_devices():
    """Five layers in a scan, kernels split over fsdp: each is gathered once a layer, the loss is one reduction."""
    mesh = mesh_lib.make_mesh((1, 8, 1))

    def shape(*sizes, spec):
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(mesh, spec))

    @jax.jit
    def loss(kernels, x):
        def layer(x, kernel):
            kernel = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, P()))
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(layer, x, kernels)[0].sum()

    kernels, x = shape(5, 64, 64, spec=P(None, "fsdp")), shape(16, 64, spec=P("fsdp"))
    found = hlo.parse(loss.lower(kernels, x).compile().as_text(), 8).collectives()
    gathers = [each for each in found if each.kind == "all-gather"]
    assert sum(each.bytes * each.times for each in gathers) == 5 * 64 * 64 * 4  # in the loop, or all before it
    (sum_,) = (each for each in found if each.kind == "all-reduce")
    assert (sum_.bytes, sum_.group, sum_.times) == (4, 8, 1)


def test_a_scan_moves_one_slice_a_step_not_the_whole_array():
    def total(xs):
        return jax.lax.scan(lambda carry, x: (carry + jnp.sin(x), None), jnp.zeros(1024), xs)[0]

    moved, padding = hlo.parse(jax.jit(total).lower(jnp.zeros((50, 1024))).compile().as_text()).traffic()
    slices = 50 * 1024 * 4
    assert 3 * slices <= moved < 8 * slices  # a slice and the carry are read, the carry written; the whole would be 50 times
    assert padding == 0


@pytest.mark.parametrize(("rows", "ways"), [(mesh_lib.REPLICATED, 1), (mesh_lib.BATCH, 4)])
def test_the_operations_of_a_device_are_its_share_of_the_programs(rows, ways):
    """A strided, dilated, padded convolution and a product, with all gradients: whole on every device, or a quarter."""
    mesh = mesh_lib.make_mesh((1, 4, 2))

    def loss(x, kernel, weights):
        y = jax.lax.conv_general_dilated(
            x, kernel, (2,), [(1, 2)], rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jnp.sum(jax.nn.silu(y @ weights) ** 2)

    shapes = [((8, 33, 16), rows), ((3, 16, 24), P()), ((24, 40), P())]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape, spec in shapes]
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arguments)
    compiled = traced.lower().compile().as_text()
    assert hlo.parse(compiled, 8).operations() * ways == operations.count(traced.jaxpr) > 0


@pytest.mark.parametrize(("line", "expected"), [
    # a TPU's product of 5 batches: a window over them that meets one element each
    ("%y = bf16[5,16,24]{2,1,0} convolution(%a, %b), window={size=5 stride=4 lhs_dilate=5}, dim_labels=0bf_0io->0bf",
     2 * 5 * 16 * 32 * 24),
    ("%y = (bf16[16,24]{1,0}, s8[4096]{0}) custom-call(%c, %d), custom_call_target=\"__cublas$gemm\", backend_config="
     '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
     2 * 16 * 32 * 24),
])
def test_operations_in_the_manner_of_accelerators(line, expected):
    text = f"""HloModule jit_step

ENTRY %main (a: bf16[5,16,32]) -> bf16[5,16,24] {{
  %a = bf16[5,16,32]{{2,1,0}} parameter(0)
  %b = bf16[5,32,24]{{2,1,0}} parameter(1)
  %c = bf16[16,32]{{1,0}} parameter(2)
  %d = bf16[32,24]{{1,0}} parameter(3)
  {line}
}}
"""
    assert hlo.parse(text).operations() == expected


def test_products_and_padding_are_told_by_the_part_of_the_model():
    """16 x 32 x 24 in bfloat16 and, in a loop of 3 turns, in float32. A tile is 8 x 128 float32 or 16 x 128 bfloat16."""
    text = """HloModule jit_step

%body (s: (s32[], f32[16,32], f32[32,24])) -> (s32[], f32[16,32], f32[32,24]) {
  %s = (s32[], f32[16,32]{1,0:T(8,128)}, f32[32,24]{1,0:T(8,128)}) parameter(0)
  %a = f32[16,32]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %b = f32[32,24]{1,0:T(8,128)} get-tuple-element(%s), index=2
  %y = f32[16,24]{1,0:T(8,128)S(1)} convolution(%a, %b), dim_labels=bf_io->bf, operand_precision={high,high}, \
metadata={op_name="jit(step)/Net/head/dense/dot"}
  ROOT %same = (s32[], f32[16,32]{1,0:T(8,128)}, f32[32,24]{1,0:T(8,128)}) tuple(%s)
}

%condition (s.1: (s32[], f32[16,32], f32[32,24])) -> pred[] {
  %s.1 = (s32[], f32[16,32]{1,0:T(8,128)}, f32[32,24]{1,0:T(8,128)}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (c: bf16[16,32], d: bf16[32,128]) -> bf16[16,128] {
  %c = bf16[16,32]{1,0:T(16,128)} parameter(0)
  %d = bf16[32,128]{1,0:T(16,128)} parameter(1)
  %loop = (s32[], f32[16,32]{1,0:T(8,128)}, f32[32,24]{1,0:T(8,128)}) while(%c), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %z = bf16[16,128]{1,0:T(16,128)} convolution(%c, %d), dim_labels=bf_io->bf, \
metadata={op_name="jit(step)/Net/in/dense/dot"}
}
"""
    module = hlo.parse(text)
    in_float32, in_bfloat16 = 3 * 2 * 16 * 32 * 24, 2 * 16 * 32 * 128
    assert module.products() == {"Net/head/dense": in_float32, "Net/in/dense": in_bfloat16}
    assert module.products("f32") == {"Net/head/dense": in_float32}
    assert module.operations() == in_float32 + in_bfloat16
    assert module.exact_products() == {"high": in_float32}
    gpu = text.replace("operand_precision={high,high}", '"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}')
    assert hlo.parse(gpu).exact_products() == {"highest": in_float32}
    # (16, 32) and (32, 24) of float32 become 128 wide; of bfloat16, d fills its tiles and c does not; y stays in the core
    assert module.padded() == {"Net/head/dense": 3 * (16 * 128 + 32 * 128) * 4, "Net/in/dense": 16 * 128 * 2}
    assert module.padded(factor=5) == {"Net/head/dense": 3 * 32 * 128 * 4}


def test_slices_inside_nested_fusions_and_asynchronous_ones_are_not_the_whole_array():
    """A TPU stacks weights in a buffer, slices them in a fusion inside a fusion, and fetches others in two halves."""
    text = """HloModule jit_apply

%pick (stack: bf16[24,64,128], i: s32[]) -> bf16[64,128] {
  %stack = bf16[24,64,128] parameter(0)
  %i = s32[] parameter(1)
  %same = bf16[24,1,64,128] bitcast(%stack)
  %one = bf16[1,1,64,128] dynamic-slice(%same, %i, %i, %i, %i), dynamic_slice_sizes={1,1,64,128}
  ROOT %flat = bf16[64,128] bitcast(%one)
}

%multiply (x: bf16[16,64], stack.1: bf16[24,64,128], i.1: s32[]) -> bf16[16,128] {
  %x = bf16[16,64] parameter(0)
  %stack.1 = bf16[24,64,128] parameter(1)
  %i.1 = s32[] parameter(2)
  %weights = bf16[64,128] fusion(%stack.1, %i.1), kind=kLoop, calls=%pick
  ROOT %y = bf16[16,128] convolution(%x, %weights), dim_labels=bf_io->bf
}

%put (stack.2: bf16[24,64,128], new: bf16[1,64,128], i.2: s32[]) -> (bf16[24,64,128], s32[]) {
  %stack.2 = bf16[24,64,128] parameter(0)
  %new = bf16[1,64,128] parameter(1)
  %i.2 = s32[] parameter(2)
  %updated = bf16[24,64,128] dynamic-update-slice(%stack.2, %new, %i.2, %i.2, %i.2)
  %same = bf16[24,64,128] bitcast(%updated)
  ROOT %both = (bf16[24,64,128], s32[]) tuple(%same, %i.2)
}

ENTRY %main (x.1: bf16[16,64], new.1: bf16[1,64,128], w: f32[64,128], i.3: s32[]) -> bf16[16,128] {
  %x.1 = bf16[16,64] parameter(0)
  %new.1 = bf16[1,64,128] parameter(1)
  %w = f32[64,128] parameter(2)
  %i.3 = s32[] parameter(3)
  %buffer = bf16[24,64,128] custom-call(), custom_call_target="AllocateBuffer"
  %filled = (bf16[24,64,128], s32[]) fusion(%buffer, %new.1, %i.3), kind=kLoop, calls=%put
  %stack.3 = bf16[24,64,128] get-tuple-element(%filled), index=0
  %upper = ((f32[64,128]), f32[32,128]{1,0:S(1)}, s32[]) slice-start(%w), slice={[0:32], [0:128]}
  %upper.done = f32[32,128]{1,0:S(1)} slice-done(%upper)
  ROOT %y.1 = bf16[16,128] fusion(%x.1, %stack.3, %i.3), kind=kOutput, calls=%multiply
}
"""
    block, index = 64 * 128 * 2, 4
    put, multiply = 2 * block + 2 * index, 16 * 64 * 2 + block + index + 16 * 128 * 2
    assert hlo.parse(text).traffic() == (put + multiply + 32 * 128 * 4, 0)
