//! What another program relies on: the examples work, errors are values, and nothing leaks between users.

#[path = "../examples/sample_video.rs"]
#[allow(dead_code, reason = "the example's main is not run here")]
mod sample_video;
#[path = "../examples/train_own_layer.rs"]
#[allow(dead_code, reason = "the example's main is not run here")]
mod train_own_layer;

use customttt::{Device, Error, Philox, Tape, Tensor, Var};
use embedding::noise;

#[test]
fn a_layer_of_ones_own_learns() -> Result<(), Error> {
    let (first, last) = train_own_layer::train(1000)?;
    assert!(last < 0.05 * first, "the loss should fall, from {first} to {last}");
    Ok(())
}

#[test]
fn sampling_reports_every_step_and_can_be_cancelled() -> Result<(), Error> {
    let folder = tempfile::tempdir().expect("a folder should be made");
    let path = folder.path().join("video.gif");
    let mut seen = Vec::new();
    sample_video::run(&path, |done, steps| {
        seen.push((done, steps));
        true
    })?;
    assert_eq!(seen, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    assert!(std::fs::metadata(&path).expect("the animation should exist").len() > 1000);
    let stopped = sample_video::run(&path, |done, _| done < 2).expect_err("the work should stop");
    assert!(matches!(stopped, Error::Cancelled { step: 2, .. }), "{stopped}");
    assert_eq!(stopped.exit_code(), 75);
    Ok(())
}

#[test]
fn two_devices_do_not_share_anything() -> Result<(), Error> {
    let work = |threads| -> Result<Vec<f32>, Error> {
        let device = Device::cpu(Some(threads))?;
        let x = noise(&device, 3, &[2, 8, 8, 4])?;
        Ok(customttt::ops::activation::forward(&x, customttt::ops::activation::Activation::Silu).to_vec())
    };
    let (a, b) = std::thread::scope(|s| {
        let (a, b) = (s.spawn(|| work(1)), s.spawn(|| work(2)));
        (a.join().expect("no panic"), b.join().expect("no panic"))
    });
    assert_eq!(a?, b?);
    assert!(!Device::cpu(Some(1))?.same(&Device::cpu(Some(1))?));
    Ok(())
}

#[test]
fn what_does_not_fit_is_a_value_and_not_a_panic() -> Result<(), Error> {
    let device = Device::cpu(Some(1))?;
    assert!(matches!(Device::cpu(Some(0)), Err(Error::Device { .. })));
    assert!(matches!(Tensor::from_slice(&device, [2, 3], &[0.0; 5]), Err(Error::Shape { .. })));
    let (a, b) = (Tensor::zeros(&device, [2, 3]), Tensor::zeros(&device, [2, 4]));
    let mut tape = Tape::off();
    let added = customttt::ops::add::apply(&mut tape, &Var::constant(a), &Var::constant(b));
    assert!(matches!(added, Err(Error::Shape { op: "add", .. })));
    assert_eq!(Philox::new(1, 2).normal_vec(0, 3).len(), 3);
    Ok(())
}
