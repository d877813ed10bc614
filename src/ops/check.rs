//! Running a specification: derivations against finite differences, devices against the f64 reference.

use super::spec::{Case, OpSpec};
use crate::rng::Philox;
use crate::{Device, Error, Result, Tape, Tensor, Var};

/// Distance of a result from its reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    /// |y - r| / |r| in the L2 norm.
    pub rel_l2: f64,
    /// Largest |y - r| in units of the last f32 place of max(|r|, rms(r)).
    pub s_ulp: f64,
}

impl Distance {
    /// Distance of `got` from `want`; infinite if a NaN or infinity differs.
    pub fn between(got: &[f32], want: &[f64]) -> Self {
        assert_eq!(got.len(), want.len(), "compared tensors should have equal sizes");
        let rms = (want.iter().map(|r| r * r).sum::<f64>() / want.len().max(1) as f64).sqrt();
        let (mut error, mut s_ulp) = (0.0_f64, 0.0_f64);
        for (&y, &r) in got.iter().zip(want) {
            let gap = (f64::from(y) - r).abs();
            if !gap.is_finite() {
                return Distance { rel_l2: f64::INFINITY, s_ulp: f64::INFINITY };
            }
            error += gap * gap;
            s_ulp = s_ulp.max(gap / ulp(r.abs().max(rms)));
        }
        let norm = rms * (want.len() as f64).sqrt();
        let rel_l2 = if error == 0.0 { 0.0 } else { error.sqrt() / norm };
        Distance { rel_l2, s_ulp }
    }
}

/// Spacing of f32 numbers at `x`.
fn ulp(x: f64) -> f64 {
    let exponent = x.max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (exponent - 23.0).exp2()
}

/// What one case of one operation measured on a device.
#[derive(Clone, Debug)]
pub struct Report {
    pub op: &'static str,
    pub case: String,
    pub forward: Distance,
    pub backward: Distance,
    /// Limits of the forward pass: relative L2 and scaled ulp; the backward pass may use twice as much.
    pub limits: (f64, f64),
}

impl Report {
    /// True if every distance is within its limit.
    pub fn holds(&self) -> bool {
        let within = |d: Distance, times: f64| d.rel_l2 <= times * self.limits.0 && d.s_ulp <= times * self.limits.1;
        within(self.forward, 1.0) && within(self.backward, 2.0)
    }
}

/// Seeded operands of a case, as the f32 numbers a device would get.
pub fn operands(spec: &dyn OpSpec, case: &Case) -> Vec<Vec<f32>> {
    let draw = |(i, input): (usize, &super::spec::Input)| {
        let mut x = Philox::new(0x5eed, 1000 + i as u32).normal_vec(0, input.shape.count());
        x.iter_mut().for_each(|v| *v = v.mul_add(input.scale, input.shift));
        x
    };
    spec.inputs(case).iter().enumerate().map(draw).collect()
}

/// Outputs, then gradients of the inputs; empty for a frozen one.
pub type Results = (Vec<Vec<f32>>, Vec<Vec<f32>>);

/// Outputs and input gradients of a case on `device`, the gradients seeded with fixed normals.
///
/// # Errors
/// The operation's own, and [`Error::MissingGradient`] if a differentiable operand got none.
pub fn run(spec: &dyn OpSpec, case: &Case, device: &Device) -> Result<Results> {
    run_with(spec, case, device, |tape, vars| spec.run(case, tape, vars))
}

/// [`run`] with another implementation of the same operation.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    spec: &dyn OpSpec,
    case: &Case,
    device: &Device,
    op: impl FnOnce(&mut Tape, &[Var]) -> Result<Vec<Var>>,
) -> Result<Results> {
    let inputs = spec.inputs(case);
    let mut tape = Tape::new();
    let mut vars = Vec::new();
    for (input, data) in inputs.iter().zip(operands(spec, case)) {
        let tensor = Tensor::from_slice(device, input.shape, &data)?;
        vars.push(if input.differentiable { tape.leaf(tensor) } else { Var::constant(tensor) });
    }
    let outputs = op(&mut tape, &vars)?;
    let values = outputs.iter().map(|o| o.tensor().to_vec()).collect();
    if inputs.iter().all(|i| !i.differentiable) {
        return Ok((values, vec![Vec::new(); inputs.len()]));
    }
    let seeds = outputs
        .iter()
        .enumerate()
        .map(|(i, o)| Ok((o, Tensor::from_slice(device, o.tensor().shape(), &seed_gradient(i, o.tensor()))?)))
        .collect::<Result<Vec<_>>>()?;
    let grads = tape.backward(&seeds)?;
    grads.require_all(inputs.iter().zip(&vars).filter(|(i, _)| i.differentiable).map(|(i, v)| (i.name, v)))?;
    Ok((values, vars.iter().map(|v| grads.get(v).map(Tensor::to_vec).unwrap_or_default()).collect()))
}

fn seed_gradient(output: usize, like: &Tensor) -> Vec<f32> {
    Philox::new(0x5eed, 2000 + output as u32).normal_vec(0, like.shape().count())
}

/// Runs a case on `device` and measures value and gradients against the f64 reference.
///
/// # Errors
/// As [`run`].
pub fn measure(spec: &dyn OpSpec, case: &Case, device: &Device) -> Result<Report> {
    let (values, grads) = run(spec, case, device)?;
    let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let inputs: Vec<_> = operands(spec, case).iter().map(|v| wide(v)).collect();
    let worst = |got: &[Vec<f32>], want: &[Vec<f64>]| {
        got.iter()
            .zip(want)
            .map(|(g, w)| Distance::between(g, w))
            .fold(Distance::default(), |a, b| Distance { rel_l2: a.rel_l2.max(b.rel_l2), s_ulp: a.s_ulp.max(b.s_ulp) })
    };
    let want = spec.reference(case, &inputs);
    if want.len() != values.len() {
        return Err(Error::Check {
            detail: format!("{} has {} outputs, not {}", spec.name(), values.len(), want.len()),
        });
    }
    let seeds: Vec<_> = want
        .iter()
        .enumerate()
        .map(|(i, w)| wide(&Philox::new(0x5eed, 2000 + i as u32).normal_vec(0, w.len())))
        .collect();
    let backward = if spec.inputs(case).iter().any(|i| i.differentiable) {
        worst(&grads, &spec.reference_backward(case, &inputs, &seeds))
    } else {
        Distance::default()
    };
    let limits = spec.accuracy(case).limits();
    Ok(Report { op: spec.name(), case: case.to_string(), forward: worst(&values, &want), backward, limits })
}

/// Largest relative error of the f64 derivation against a 4-point central difference, over unit directions
/// through every differentiable input.
pub fn derivation_error(spec: &dyn OpSpec, case: &Case, directions: usize) -> f64 {
    const STEP: f64 = 1e-2;
    let declared = spec.inputs(case);
    let inputs: Vec<Vec<f64>> =
        operands(spec, case).iter().map(|v| v.iter().map(|&x| f64::from(x)).collect()).collect();
    let seeds: Vec<Vec<f64>> =
        spec.reference(case, &inputs).iter().enumerate().map(|(i, o)| normals(3000 + i as u32, o.len())).collect();
    let objective = |inputs: &[Vec<f64>]| -> f64 {
        let outputs = spec.reference(case, inputs);
        outputs.iter().zip(&seeds).map(|(o, s)| dot(o, s)).sum()
    };
    let grads = spec.reference_backward(case, &inputs, &seeds);
    let mut worst = 0.0_f64;
    for (i, _) in declared.iter().enumerate().filter(|(_, d)| d.differentiable) {
        for d in 0..directions {
            let mut direction = normals(4000 + (i * directions + d) as u32, inputs[i].len());
            let norm = dot(&direction, &direction).sqrt();
            direction.iter_mut().for_each(|v| *v /= norm);
            let at = |h: f64| {
                let mut moved = inputs.to_vec();
                moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += h * d);
                objective(&moved)
            };
            let numeric = (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP);
            let analytic = dot(&grads[i], &direction);
            let scale = dot(&grads[i], &grads[i]).sqrt().max(1e-12);
            worst = worst.max((numeric - analytic).abs() / scale);
        }
    }
    worst
}

fn normals(stream: u32, len: usize) -> Vec<f64> {
    Philox::new(0x5eed, stream).normal_vec(0, len).into_iter().map(f64::from).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Largest relative L2 distance, over outputs and gradients, between an operation and its composition from
/// simpler ones; `None` if the operation is no fusion.
///
/// # Errors
/// As [`run`].
pub fn fusion_distance(spec: &dyn OpSpec, case: &Case, device: &Device) -> Result<Option<f64>> {
    let mut composed = true;
    let simple = run_with(spec, case, device, |tape, vars| match spec.unfused(case, tape, vars)? {
        Some(outputs) => Ok(outputs),
        None => {
            composed = false;
            spec.run(case, tape, vars)
        }
    })?;
    if !composed {
        return Ok(None);
    }
    let fused = run(spec, case, device)?;
    let pairs = fused.0.iter().chain(&fused.1).zip(simple.0.iter().chain(&simple.1));
    let worst = pairs.map(|(f, s)| {
        let want: Vec<f64> = s.iter().map(|&x| f64::from(x)).collect();
        Distance::between(f, &want).rel_l2
    });
    Ok(Some(worst.fold(0.0, f64::max)))
}
