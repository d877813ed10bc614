//! The loss on predicted noise, with its gradient.
//!
//! Plain: `L = mean r^2` with `r = prediction - target`; `dr = 2 r / n`.
//!
//! Appearance-debiased (MotionDirector, section 3), added to it: with the anchor frame a, `b = 1` and
//! `a' = sqrt(b^2 + 1)`, the error of frame i is `u_i = a' r_i - b r_a` and `L_ad = mean over all i of u_i^2`.
//! `dr_i += 2 a' u_i / n`, and the anchor frame, which is in every term, `dr_a -= 2 b sum_i u_i / n`.
//! Latents are few, so every element is computed in f64 and rounded once.

use super::spec::{Accuracy, Case, Input, OpSpec};
use crate::tape::{Id, Node};
use crate::{Device, Error, Grads, Result, Tape, Tensor, Var};

/// The stem.
pub const NAME: &str = "loss";

const BETA: f64 = 1.0;
const ALPHA: f64 = std::f64::consts::SQRT_2;

/// `weight * loss` and its gradient with respect to the prediction.
///
/// # Shapes
/// prediction, target and gradient (B*F, ..) alike; `anchor` is the frame, below F, that the debiased term is
/// anchored at in every video; without it the loss is plain.
///
/// # Errors
/// [`Error::Shape`] for sizes that do not go together or an anchor beyond the frames.
pub fn forward(
    prediction: &Tensor,
    target: &Tensor,
    frames: usize,
    anchor: Option<usize>,
    weight: f32,
) -> Result<(f32, Tensor)> {
    let shape = prediction.shape();
    let images = shape.first().copied().unwrap_or(0);
    if target.shape() != shape {
        return Err(Error::shape(NAME, format!("target {} for a prediction {shape}", target.shape())));
    }
    if images == 0 || frames == 0 || images % frames != 0 || anchor.is_some_and(|a| a >= frames) {
        let detail = format!("{images} pictures of videos of {frames} frames with anchor {anchor:?}");
        return Err(Error::shape(NAME, detail));
    }
    let mut gradient = Tensor::empty(prediction.device(), shape);
    let loss = match prediction.device() {
        Device::Cpu(_) => {
            let pixels = shape.count() / images;
            cpu::forward(gradient.host_mut(), prediction.host(), target.host(), pixels, frames, anchor, weight.into())
        }
    };
    Ok((loss as f32, gradient))
}

mod cpu {
    use super::*;

    /// Writes the gradient; returns the loss. `pixels` are the numbers of one frame.
    pub(super) fn forward(
        gradient: &mut [f32],
        prediction: &[f32],
        target: &[f32],
        pixels: usize,
        frames: usize,
        anchor: Option<usize>,
        weight: f64,
    ) -> f64 {
        let per_element = weight / prediction.len() as f64;
        let mut loss = 0.0;
        for video in (0..prediction.len()).step_by(frames * pixels) {
            for pixel in video..video + pixels {
                let residual = |i: usize| {
                    let at = pixel + i * pixels;
                    f64::from(prediction[at]) - f64::from(target[at])
                };
                let leaning = anchor.map(residual);
                let mut total = 0.0; // sum of the debiased errors
                for i in 0..frames {
                    let r = residual(i);
                    let u = leaning.map_or(0.0, |r_a| ALPHA * r - BETA * r_a);
                    total += u;
                    loss += r * r + u * u;
                    gradient[pixel + i * pixels] = (2.0 * per_element * (r + ALPHA * u)) as f32;
                }
                if let Some(a) = anchor {
                    let (r, r_a) = (residual(a), leaning.unwrap_or_default());
                    let own = r + ALPHA * (ALPHA * r - BETA * r_a);
                    gradient[pixel + a * pixels] = (2.0 * per_element * (own - BETA * total)) as f32;
                }
            }
        }
        loss * per_element
    }
}

struct LossNode {
    prediction: Option<Id>,
    loss: Id,
    gradient: Tensor,
}

impl Node for LossNode {
    fn name(&self) -> &'static str {
        NAME
    }

    fn saved_bytes(&self) -> usize {
        self.gradient.bytes()
    }

    fn backward(self: Box<Self>, grads: &mut Grads) -> Result<()> {
        let Some(dloss) = grads.take(self.loss) else { return Ok(()) };
        let scale = dloss.host()[0];
        let mut gradient = self.gradient;
        grads.add(self.prediction, || {
            if scale != 1.0 {
                gradient.host_mut().iter_mut().for_each(|g| *g *= scale);
            }
            Ok(gradient)
        })
    }
}

/// [`forward`] on the tape: a scalar.
///
/// # Errors
/// Those of [`forward`].
pub fn apply(tape: &mut Tape, prediction: &Var, target: &Tensor, frames: usize, anchor: Option<usize>) -> Result<Var> {
    let (loss, gradient) = forward(prediction.tensor(), target, frames, anchor, 1.0)?;
    let loss = Tensor::full(prediction.tensor().device(), [], loss);
    Ok(tape.record(loss, &[prediction], |loss| LossNode { prediction: prediction.id(), loss, gradient }))
}

/// The specification.
pub struct Spec;

fn anchor(case: &Case) -> Option<usize> {
    case.on("debias").then(|| case.get("F") / 2)
}

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cases(&self) -> Vec<Case> {
        let case = |(b, f, n, debias)| Case::new(&[("B", b), ("F", f), ("N", n), ("debias", debias)]);
        [(1, 1, 1, 0), (1, 1, 4, 1), (2, 3, 5, 0), (2, 3, 5, 1), (1, 16, 70, 1)].map(case).into()
    }

    fn real_cases(&self) -> Vec<Case> {
        let case = |(f, debias)| Case::new(&[("B", 1), ("F", f), ("N", 32 * 32 * 4), ("debias", debias)]);
        [(1, 0), (16, 1)].map(case).into()
    }

    fn inputs(&self, case: &Case) -> Vec<Input> {
        let shape = [case.get("B") * case.get("F"), case.get("N")];
        vec![Input::new("prediction", shape), Input::frozen("target", shape)]
    }

    fn reference(&self, case: &Case, inputs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (f, n) = (case.get("F"), case.get("N"));
        let r: Vec<f64> = inputs[0].iter().zip(&inputs[1]).map(|(p, t)| p - t).collect();
        let mut sum: f64 = r.iter().map(|r| r * r).sum();
        if let Some(a) = anchor(case) {
            let frame_of = |at: usize| at / n % f;
            let anchored = |at: usize| r[at - frame_of(at) * n + a * n];
            sum += (0..r.len()).map(|at| (ALPHA * r[at] - BETA * anchored(at)).powi(2)).sum::<f64>();
        }
        vec![vec![sum / r.len() as f64]]
    }

    fn reference_backward(&self, case: &Case, inputs: &[Vec<f64>], grads: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (f, n) = (case.get("F"), case.get("N"));
        let r: Vec<f64> = inputs[0].iter().zip(&inputs[1]).map(|(p, t)| p - t).collect();
        let mut dr = r.clone();
        if let Some(a) = anchor(case) {
            for at in 0..r.len() {
                let anchored = at - at / n % f * n + a * n;
                let u = ALPHA * r[at] - BETA * r[anchored];
                dr[at] += ALPHA * u;
                dr[anchored] -= BETA * u;
            }
        }
        let scale = 2.0 * grads[0][0] / r.len() as f64;
        vec![dr.iter().map(|d| scale * d).collect(), Vec::new()]
    }

    fn run(&self, case: &Case, tape: &mut Tape, inputs: &[Var]) -> Result<Vec<Var>> {
        Ok(vec![apply(tape, &inputs[0], inputs[1].tensor(), case.get("F"), anchor(case))?])
    }

    fn accuracy(&self, _case: &Case) -> Accuracy {
        Accuracy::Scalar
    }

    fn flops(&self, case: &Case) -> u64 {
        8 * (case.get("B") * case.get("F") * case.get("N")) as u64
    }

    fn output_count(&self, _case: &Case) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debiased(errors: &[f32], anchor: usize) -> f32 {
        let device = Device::cpu(Some(1)).expect("threads should start");
        let tensor = |data: &[f32]| Tensor::from_slice(&device, [data.len(), 1], data).expect("sizes should fit");
        let of = |anchor| forward(&tensor(errors), &tensor(&vec![0.0; errors.len()]), errors.len(), anchor, 1.0);
        let (all, _) = of(Some(anchor)).expect("shapes should fit");
        all - of(None).expect("shapes should fit").0
    }

    #[test]
    fn debiased_term_has_its_closed_forms() {
        assert!((debiased(&[3.0; 16], 5) - 0.171_572_9 * 9.0).abs() < 1e-5, "equal errors");
        assert!((debiased(&[1.0, 0.0, 2.0, 3.0], 1) - 2.0 * 14.0 / 4.0).abs() < 1e-5, "no error at the anchor");
        assert_eq!(debiased(&[0.0; 8], 3), 0.0, "a perfect prediction");
    }
}
