"""A decode step in the text of the TPU compiler, written by hand: a loop over layers, a handoff, a kernel.

Eight chips as stack=2, tensor=4. Costs: 7 layers of 1000 cycles with an all-reduce each, then 200 cycles and two
collectives while the handoff is under way, then 30.
"""

# ruff: noqa: E501 -- an instruction is a line

STEP = r"""HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[8,64]{1,0})->(s32[8])}, num_partitions=8

FileNames
1 "step.py"

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[]{:T(256)} parameter(0)
  %y = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%x, %y)
}

%matmul (p.0: bf16[8,64], p.1: bf16[7,64,64]) -> bf16[8,64] {
  %p.0 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[7,64,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[8,64]{1,0:T(8,128)(2,1)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[8,64], bf16[7,64,64], s32[])) -> (s32[], bf16[8,64], bf16[7,64,64], s32[]) {
  %state = (s32[]{:T(128)}, bf16[8,64]{1,0}, bf16[7,64,64]{2,1,0}, /*index=3*/s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %one = s32[]{:T(128)} get-tuple-element(%state), index=3
  %i.copy = s32[]{:T(128)S(6)} copy(%i)
  %next = s32[]{:T(128)} add(%i.copy, %one)
  %h = bf16[8,64]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %w = bf16[7,64,64]{2,1,0} get-tuple-element(%state), index=2
  %fusion.1 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} fusion(%h, %w), kind=kOutput, calls=%matmul, metadata={op_name="jit(step)/while/body/mlp/dot_general" stack_frame_id=3}, backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"1000","iteration_bounds":["1"]}}
  %psum.1 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} all-reduce(%fusion.1), channel_id=1, replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(step)/while/body/mlp/psum" stack_frame_id=4}, backend_config={"debug":"StrategyND{dim_used:{0 1},{1 0}}","barrier_config":{"id":"0"}}
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[8,64]{1,0}, bf16[7,64,64]{2,1,0}, s32[]{:T(128)}) tuple(%next, %psum.1, %w, %one)
}

%condition (state.1: (s32[], bf16[8,64], bf16[7,64,64], s32[])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[8,64]{1,0}, bf16[7,64,64]{2,1,0}, s32[]{:T(128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(9)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

%argmax (p.2: bf16[8,64]) -> s32[8] {
  %p.2 = bf16[8,64]{1,0} parameter(0)
  ROOT %custom = s32[8]{0} custom-call(%p.2), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"body": "TUzvUg=="}}
}

ENTRY %main (embedded: bf16[8,64], weights: bf16[7,64,64], memory: bf16[8,64]) -> (s32[8], bf16[8,64]) {
  %embedded = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="params[\'embedding\']"}
  %weights = bf16[7,64,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  %memory = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(2)
  %two = s32[]{:T(128)} constant(2)
  %one.1 = s32[]{:T(128)} constant(1)
  %copy-start = (bf16[7,64,64]{2,1,0:T(8,128)S(1)}, bf16[7,64,64]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%weights)
  %copy-done = bf16[7,64,64]{2,1,0:T(8,128)S(1)} copy-done(%copy-start)
  %state.0 = (s32[]{:T(128)}, bf16[8,64]{1,0}, bf16[7,64,64]{2,1,0}, s32[]{:T(128)}) tuple(%two, %embedded, %copy-done, %one.1)
  %while.1 = (s32[]{:T(128)}, bf16[8,64]{1,0}, bf16[7,64,64]{2,1,0}, s32[]{:T(128)}) while(%state.0), condition=%condition, body=%body
  %out = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%while.1), index=1
  %handoff-start = (bf16[8,64]{1,0:T(8,128)}, bf16[8,64]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%out), channel_id=2, source_target_pairs={{0,4},{1,5},{2,6},{3,7}}, metadata={op_name="jit(step)/handoff/ppermute"}
  %psum.2 = bf16[8,64]{1,0:T(8,128)(2,1)} all-reduce(%out), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(step)/combination/psum"}
  %logits = bf16[8,64]{1,0} multiply(%psum.2, %psum.2), metadata={op_name="jit(step)/logits/mul"}, backend_config={"window_config":{"estimated_cycles":"200"}}
  %gathered = bf16[8,64]{1,0} all-reduce(%logits), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%add, metadata={op_name="jit(step)/sampling/all_gather"}
  %token = s32[8]{0} custom-call(%gathered), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/sampling/pallas_call"}
  %handoff-done = bf16[8,64]{1,0:T(8,128)(2,1)} collective-permute-done(%handoff-start), metadata={op_name="jit(step)/handoff/ppermute"}
  %checked = s32[8]{0} add(%token, %token), metadata={op_name="jit(step)/sampling/add"}, backend_config={"window_config":{"estimated_cycles":"30"}}
  %endless = s32[8]{0} negate(%token), backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  ROOT %result = (s32[8]{0}, bf16[8,64]{1,0:T(8,128)(2,1)}) tuple(%checked, %handoff-done)
}
"""

# The same step without staggering: what arrives is added, and the result goes on to the combination.
SERIAL = (
    STEP.replace(
        "  %psum.2 = ", "  %early-done = bf16[8,64]{1,0} collective-permute-done(%handoff-start)\n  %psum.2 = "
    )
    .replace("all-reduce(%out), channel_id=3", "all-reduce(%early-done), channel_id=3")
    .replace(
        "  %handoff-done = bf16[8,64]{1,0:T(8,128)(2,1)} collective-permute-done(%handoff-start)",
        "  %handoff-done = bf16[8,64]{1,0:T(8,128)(2,1)} copy(%early-done)",
    )
)

# What is sent left a step earlier: it is taken out of a ring, at a place that is computed in this step.
LAGGED = STEP.replace(
    "  %handoff-start = ",
    "  %place = s32[]{:T(128)} add(%two, %one.1)\n"
    "  %sent = bf16[8,64]{1,0} dynamic-slice(%memory, %place, %place), dynamic_slice_sizes={8,64}\n"
    "  %handoff-start = ",
).replace("collective-permute-start(%out)", "collective-permute-start(%sent)")

# One all-gather, spread by the TPU compiler over three fusions.
OVERLAPPED = r"""HloModule jit_train, is_scheduled=true, num_partitions=8

%start (p.0: bf16[8,64]) -> (bf16[8,64], bf16[32,64], u32[]) {
  %p.0 = bf16[8,64]{1,0} parameter(0)
  %all-gather.1 = bf16[32,64]{1,0} all-gather(%p.0), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="3"}, metadata={op_name="jit(train)/all_gather"}
  ROOT %custom-call.1 = (bf16[8,64]{1,0}, bf16[32,64]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%during (p.1: bf16[8,64], p.2: bf16[8,64]) -> (bf16[8,64], bf16[32,64]) {
  %p.1 = bf16[8,64]{1,0} parameter(0)
  %p.2 = bf16[8,64]{1,0} parameter(1)
  %all-gather.2 = bf16[32,64]{1,0} all-gather(%p.1), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="3"}
  %product = bf16[8,64]{1,0} multiply(%p.2, %p.2)
  ROOT %tuple.1 = (bf16[8,64]{1,0}, bf16[32,64]{1,0}) tuple(%product, %all-gather.2)
}

%end (p.3: bf16[32,64]) -> bf16[32,64] {
  %p.3 = bf16[32,64]{1,0} parameter(0)
  %all-gather.3 = bf16[32,64]{1,0} all-gather(%p.3), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="3"}
  ROOT %custom-call.2 = bf16[32,64]{1,0} custom-call(%p.3, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (shard: bf16[8,64], x: bf16[8,64]) -> (bf16[8,64], bf16[32,64]) {
  %shard = bf16[8,64]{1,0} parameter(0)
  %x = bf16[8,64]{1,0} parameter(1)
  %async-collective-start = (bf16[8,64]{1,0}, bf16[32,64]{1,0}, u32[]{:S(2)}) fusion(%shard), kind=kCustom, calls=%start
  %part = bf16[8,64]{1,0} get-tuple-element(%async-collective-start), index=0
  %fusion.2 = (bf16[8,64]{1,0}, bf16[32,64]{1,0}) fusion(%part, %x), kind=kOutput, calls=%during, backend_config={"window_config":{"estimated_cycles":"500"}}
  %product.1 = bf16[8,64]{1,0} get-tuple-element(%fusion.2), index=0
  %whole = bf16[32,64]{1,0} get-tuple-element(%fusion.2), index=1
  %async-collective-done = bf16[32,64]{1,0} fusion(%whole), kind=kCustom, calls=%end
  ROOT %tuple.2 = (bf16[8,64]{1,0}, bf16[32,64]{1,0}) tuple(%product.1, %async-collective-done)
}
"""
