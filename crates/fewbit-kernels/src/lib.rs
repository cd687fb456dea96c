//! CPU operations of fewbit: scalar definitions, SIMD implementations, dispatch, thread pool.
