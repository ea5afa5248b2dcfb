"""StagFormer as plain functions over a parameter pytree.

Dimensions are single letters, and arrays carry them as a suffix that is also their einsum subscript:

    B batch    T query positions    S key or memory slots    D model width    F ff hidden    V vocabulary
    N heads    K kv heads    G query heads of one kv head    C kv heads of all rows (B K)    H head dim
    P stacks    L layers per stack    W weight sets of the stacks (1 if shared, else P)
    X weight sets of cross-attention (set x serves stack x+1)
    M microbatches    R rounds of a pipeline
"""
