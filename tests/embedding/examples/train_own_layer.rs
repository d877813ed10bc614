//! Trains a LoRA on a linear layer of the caller's own: tensors, the tape, operations and the optimizer.
//!
//! The frozen layer computes `y = x W^T`; the LoRA learns to turn it by a fixed rank-one change.

use customttt::ops::lion::{self, Lion};
use customttt::ops::lora_matmul::{self, Adapter};
use customttt::ops::{linear, loss};
use customttt::{Device, HostData, Philox, Result, Tape, Tensor, Var, Weight};

const BATCH: usize = 64;
const INPUTS: usize = 24;
const OUTPUTS: usize = 16;
const RANK: usize = 2;

fn main() -> Result<()> {
    let (first, last) = train(1000)?;
    println!("loss {first:.4} -> {last:.4}");
    Ok(())
}

/// Trains for `steps` steps; returns the first and the last loss.
///
/// # Errors
/// Those of the operations.
pub fn train(steps: u32) -> Result<(f32, f32)> {
    let device = Device::cpu(None)?;
    let draw = |stream, shape: [usize; 2], scale: f32| {
        let numbers = Philox::new(1, stream).normal_vec(0, shape[0] * shape[1]);
        Tensor::from_slice(&device, shape, &numbers.iter().map(|x| scale * x).collect::<Vec<_>>())
    };
    let frozen = draw(0, [OUTPUTS, INPUTS], 0.2)?.to_vec();
    let weight = Weight::new(&device, [OUTPUTS, INPUTS], &HostData::from(&frozen[..]))?;

    // What the layer should become: its weight plus an outer product.
    let wanted = weight.merged(&draw(1, [1, INPUTS], 0.3)?, &draw(2, [OUTPUTS, 1], 0.3)?, 1.0)?;

    let (mut down, mut up) = (draw(3, [RANK, INPUTS], 0.5)?, Tensor::zeros(&device, [OUTPUTS, RANK]));
    let mut momenta = (Tensor::zeros(&device, down.shape()), Tensor::zeros(&device, up.shape()));
    let lion = Lion { lr: 2e-3, beta1: 0.9, beta2: 0.99, weight_decay: 0.0 };
    let mut losses = Vec::new();
    for step in 0..steps {
        let x = draw(10 + step, [BATCH, INPUTS], 1.0)?;
        let target = linear::forward(&x, &wanted, None, None)?;

        let mut tape = Tape::new();
        let (a, b) = (tape.leaf(down.clone()), tape.leaf(up.clone()));
        let adapter = Adapter { down: a.clone(), up: b.clone(), scale: 1.0, dropout: None };
        let y = lora_matmul::apply(&mut tape, &Var::constant(x), &weight, None, None, &[adapter])?;
        let loss = loss::apply(&mut tape, &y, &target, 1, None)?;
        losses.push(loss.tensor().to_vec()[0]);

        let one = Tensor::full(&device, loss.tensor().shape(), 1.0);
        let grads = tape.backward(&[(&loss, one)])?;
        grads.require_all([("down", &a), ("up", &b)])?;
        let gradient = |v| grads.get(v).expect("every factor should have a gradient");
        lion::step(&mut down, gradient(&a), &mut momenta.0, lion)?;
        lion::step(&mut up, gradient(&b), &mut momenta.1, lion)?;
    }
    Ok((losses[0], losses[losses.len() - 1]))
}
