//! What every operation owes beyond its values: a NaN that goes in comes out, and operands that do not fit
//! are typed errors.

use customttt::ops::group_norm::GroupNorm;
use customttt::ops::{self, check};
use customttt::ops::{
    activation::{self, Activation},
    add,
    attention::{self, Mask},
    concat, embedding, geglu, group_norm,
    layer_norm::{self, Position},
    lion::{self, Lion},
    loss, q_sample, temporal_attention, upsample,
};
use customttt::{Device, Error, Result, Tape, Tensor, Var};

fn device() -> Device {
    Device::cpu(Some(2)).expect("threads should start")
}

/// Outputs of a case on the given operands.
fn outputs(spec: &dyn ops::spec::OpSpec, case: &ops::spec::Case, operands: &[Vec<f32>], device: &Device) -> Vec<f32> {
    let tensors = spec.inputs(case).into_iter().zip(operands).map(|(i, x)| Tensor::from_slice(device, i.shape, x));
    let vars: Vec<Var> = tensors.map(|t| Var::constant(t.expect("operands should fill their shapes"))).collect();
    let outputs = spec.run(case, &mut Tape::off(), &vars).unwrap_or_else(|e| panic!("{} {case}: {e}", spec.name()));
    outputs.iter().flat_map(|o| o.tensor().to_vec()).collect()
}

/// Whatever depends on an element shows a NaN in it: wherever another number changes the output, a NaN must.
#[test]
fn nan_in_is_nan_out() {
    let device = device();
    let mut seen = 0;
    for spec in ops::ALL {
        for case in spec.cases() {
            let operands = check::operands(*spec, &case);
            let before = outputs(*spec, &case, &operands, &device);
            for (i, at) in
                (0..operands.len()).flat_map(|i| [(i, 0), (i, operands[i].len() / 2), (i, operands[i].len() - 1)])
            {
                let with = |value: f32| {
                    let mut moved = operands.clone();
                    moved[i][at] = value;
                    outputs(*spec, &case, &moved, &device)
                };
                let (other, nan) = (with(operands[i][at] + 4.0), with(f32::NAN));
                for (o, ((before, other), nan)) in before.iter().zip(&other).zip(&nan).enumerate() {
                    let depends = before.to_bits() != other.to_bits();
                    seen += usize::from(depends);
                    let name = spec.name();
                    assert!(
                        !depends || nan.is_nan(),
                        "{name} {case}: a NaN in operand {i} at {at} is lost in output {o}"
                    );
                }
            }
        }
    }
    assert!(seen > 1000, "the operands should matter");
}

#[test]
fn infinities_are_not_hidden() -> Result<()> {
    let device = device();
    let x = Tensor::from_slice(&device, [1, 2, 2], &[1.0, f32::INFINITY, -2.0, 3.0])?;
    let (gamma, beta) = (Tensor::full(&device, [2], 1.0), Tensor::zeros(&device, [2]));
    let norm = GroupNorm { groups: 1, eps: 1e-5, images_per_group: 1, silu: true };
    assert!(group_norm::forward(&x, &gamma, &beta, norm)?.0.to_vec().iter().all(|y| y.is_nan()), "group_norm");
    let y = layer_norm::forward(&x, &gamma, &beta, 1e-5, None)?.to_vec();
    assert!(y[..2].iter().all(|y| y.is_nan()) && y[2..].iter().all(|y| y.is_finite()), "layer_norm {y:?}");
    let out = attention::forward(&x, &x, &x, 1, Mask::None)?.to_vec();
    assert!(out.iter().any(|y| y.is_nan()), "attention {out:?}");
    let x = Tensor::from_slice(&device, [2], &[f32::INFINITY, -1e30])?;
    for kind in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        assert_eq!(activation::forward(&x, kind).to_vec(), [f32::INFINITY, -0.0], "{kind:?}");
    }
    Ok(())
}

/// A query whose row is one number large enough sees one key alone; no score may overflow on the way.
#[test]
fn attention_survives_large_scores() -> Result<()> {
    let device = device();
    let tensor = |data: &[f32]| Tensor::from_slice(&device, [1, data.len(), 1], data);
    let (q, k, v) = (tensor(&[1e18, -1e18])?, tensor(&[1e18, 0.0, -1e18])?, tensor(&[1.0, 2.0, 3.0])?);
    assert_eq!(attention::forward(&q, &k, &v, 1, Mask::None)?.to_vec(), [1.0, 3.0]);
    Ok(())
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let device = device();
    let t = |shape: &[usize]| Tensor::zeros(&device, shape);
    let v = |shape: &[usize]| Var::constant(t(shape));
    let norm = |groups, images_per_group| GroupNorm { groups, eps: 1e-5, images_per_group, silu: false };
    let normed = |x: &[usize], c: usize, norm| group_norm::forward(&t(x), &t(&[c]), &t(&[c]), norm).map(|_| ());
    let attend = |q: &[usize], k: &[usize], v: &[usize], heads, mask| {
        attention::forward(&t(q), &t(k), &t(v), heads, mask).map(|_| ())
    };
    let in_time = |q: &[usize], v: &[usize], frames, heads| {
        temporal_attention::forward(&t(q), &t(q), &t(v), frames, heads).map(|_| ())
    };
    let settings = Lion { lr: 1e-3, beta1: 0.9, beta2: 0.99, weight_decay: 0.1 };
    let position = |table: &Tensor, rows| {
        layer_norm::forward(&t(&[4, 6]), &t(&[6]), &t(&[6]), 1e-5, Some(Position { table, rows })).map(|_| ())
    };
    let mut tape = Tape::off();
    let wrong: Vec<(&str, Result<()>)> = vec![
        ("sum", add::apply(&mut tape, &v(&[2, 3]), &v(&[3, 2])).map(|_| ())),
        ("concat rows", concat::forward(&t(&[2, 3]), &t(&[3, 3])).map(|_| ())),
        ("concat rank", concat::forward(&t(&[2, 3]), &t(&[1, 2, 3])).map(|_| ())),
        ("concat part", concat::backward(&t(&[2, 3]), 2, 2).map(|_| ())),
        ("geglu odd", geglu::forward(&t(&[2, 3])).map(|_| ())),
        ("geglu gradient", geglu::backward(&t(&[2, 3]), &t(&[2, 4])).map(|_| ())),
        ("activation gradient", activation::backward(t(&[3]), &t(&[4]), Activation::Silu).map(|_| ())),
        ("upsample rank", upsample::forward(&t(&[2, 3, 4]), 6, 8).map(|_| ())),
        ("upsample to nothing", upsample::forward(&t(&[1, 3, 4, 2]), 0, 8).map(|_| ())),
        ("upsample gradient", upsample::backward(&t(&[1, 6, 8, 2]), [2, 3, 4, 2].into()).map(|_| ())),
        ("groups", normed(&[2, 5, 6], 6, norm(4, 1))),
        ("no groups", normed(&[2, 5, 6], 6, norm(0, 1))),
        ("images", normed(&[3, 5, 6], 6, norm(2, 2))),
        ("no images", normed(&[2, 5, 6], 6, norm(2, 0))),
        ("norm of nothing", normed(&[2, 0, 6], 6, norm(2, 1))),
        ("gamma", normed(&[2, 5, 6], 5, norm(2, 1))),
        ("row gamma", layer_norm::forward(&t(&[4, 6]), &t(&[5]), &t(&[6]), 1e-5, None).map(|_| ())),
        ("row gradient", layer_norm::backward(t(&[3, 6]), &t(&[4, 6]), &t(&[6]), 1e-5, None).map(|_| ())),
        ("position width", position(&t(&[2, 5]), 1)),
        ("position every 0", position(&t(&[2, 6]), 0)),
        ("heads", attend(&[1, 4, 6], &[1, 5, 6], &[1, 5, 6], 4, Mask::None)),
        ("no heads", attend(&[1, 4, 6], &[1, 5, 6], &[1, 5, 6], 0, Mask::None)),
        ("values", attend(&[1, 4, 6], &[1, 5, 6], &[1, 4, 6], 2, Mask::None)),
        ("channels", attend(&[1, 4, 6], &[1, 5, 8], &[1, 5, 8], 2, Mask::None)),
        ("batches", attend(&[3, 4, 6], &[2, 5, 6], &[2, 5, 6], 2, Mask::None)),
        ("no keys", attend(&[1, 4, 6], &[1, 0, 6], &[1, 0, 6], 2, Mask::None)),
        ("causal", attend(&[1, 4, 6], &[1, 5, 6], &[1, 5, 6], 2, Mask::Causal)),
        ("attention rank", attend(&[4, 6], &[5, 6], &[5, 6], 2, Mask::None)),
        ("frames", in_time(&[6, 4, 8], &[6, 4, 8], 4, 2)),
        ("no frames", in_time(&[6, 4, 8], &[6, 4, 8], 0, 2)),
        ("many frames", in_time(&[33, 4, 8], &[33, 4, 8], 33, 2)),
        ("temporal heads", in_time(&[6, 4, 8], &[6, 4, 8], 3, 3)),
        ("temporal values", in_time(&[6, 4, 8], &[6, 4, 4], 3, 2)),
        ("no such row", embedding::forward(&t(&[4, 3]), &[1, 4]).map(|_| ())),
        ("target", loss::forward(&t(&[2, 3]), &t(&[3, 2]), 1, None, 1.0).map(|_| ())),
        ("videos", loss::forward(&t(&[4, 3]), &t(&[4, 3]), 3, None, 1.0).map(|_| ())),
        ("anchor", loss::forward(&t(&[4, 3]), &t(&[4, 3]), 4, Some(4), 1.0).map(|_| ())),
        ("noise", q_sample::forward(&t(&[4, 3]), &t(&[4, 2]), 0.5).map(|_| ())),
        ("momentum", lion::step(&mut t(&[4]), &t(&[4]), &mut t(&[3]), settings)),
    ];
    for (what, result) in wrong {
        assert!(matches!(result, Err(Error::Shape { .. })), "{what}: {result:?}");
    }
}

/// A frame's own norm, and attention within it, do not depend on what else is in the batch.
#[test]
fn results_do_not_depend_on_the_batch() -> Result<()> {
    let device = device();
    let x = |seed, batch| {
        let data = customttt::Philox::new(seed, 1).normal_vec(0, batch * 37 * 48);
        Tensor::from_slice(&device, [batch, 37, 48], &data)
    };
    let (q, k, v) = (x(1, 3)?, x(2, 3)?, x(3, 3)?);
    let (gamma, beta) = (Tensor::full(&device, [48], 1.5), Tensor::zeros(&device, [48]));
    let norm = GroupNorm { groups: 4, eps: 1e-5, images_per_group: 1, silu: true };
    let all = attention::forward(&q, &k, &v, 2, Mask::None)?;
    let normed = group_norm::forward(&q, &gamma, &beta, norm)?.0;
    for i in 0..3 {
        let [q, k, v] = [&q, &k, &v].map(|x| x.narrow(i, 1).expect("the batch should have three"));
        assert_eq!(attention::forward(&q, &k, &v, 2, Mask::None)?.to_vec(), all.narrow(i, 1)?.to_vec());
        assert_eq!(group_norm::forward(&q, &gamma, &beta, norm)?.0.to_vec(), normed.narrow(i, 1)?.to_vec());
    }
    Ok(())
}
