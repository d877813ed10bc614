//! One fused operation per file, always in this order: the formula and the derivation of each gradient,
//! shape checks, `forward`/`backward` on tensors, the CPU kernel, the tape node, `apply` on variables, and
//! the [`spec::OpSpec`] that tests, `check` and the benchmarks run.
//!
//! To add an operation: write `ops/<op>.rs` (and `kernels/<op>.cu`), and name it twice below.

pub mod activation;
pub mod add;
pub mod attention;
pub mod check;
pub mod concat;
pub mod conv2d;
pub mod ddim_step;
pub mod embedding;
pub mod geglu;
pub mod group_norm;
pub mod l2_normalize;
pub mod layer_norm;
pub mod linear;
pub mod lion;
pub mod lora_matmul;
pub mod loss;
pub mod q_sample;
pub mod spec;
pub mod temporal_attention;
pub mod upsample;

/// The specification of every operation.
pub const ALL: &[&dyn spec::OpSpec] = &[
    &activation::Spec,
    &add::Spec,
    &attention::Spec,
    &concat::Spec,
    &conv2d::Spec,
    &ddim_step::Spec,
    &embedding::Spec,
    &geglu::Spec,
    &group_norm::Spec,
    &l2_normalize::Spec,
    &layer_norm::Spec,
    &linear::Spec,
    &lion::Spec,
    &lora_matmul::Spec,
    &loss::Spec,
    &q_sample::Spec,
    &temporal_attention::Spec,
    &upsample::Spec,
];
