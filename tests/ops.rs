//! Every operation, by its specification: the derivation against finite differences in f64, the CPU device
//! against f64, and the same bits from any number of threads.

use customttt::ops::{self, check};
use customttt::{Device, Error};

fn devices() -> Vec<Device> {
    [1, 2, 4].map(|threads| Device::cpu(Some(threads)).expect("threads should start")).into()
}

#[test]
fn derivations_match_central_differences() {
    for spec in ops::ALL {
        for case in spec.cases() {
            let error = check::derivation_error(*spec, &case, 16);
            assert!(error <= 1e-8, "{} {case}: derivation off by {error:e}", spec.name());
        }
    }
}

#[test]
fn results_match_f64() {
    let device = Device::cpu(Some(2)).expect("threads should start");
    for spec in ops::ALL {
        for case in spec.cases() {
            let report =
                check::measure(*spec, &case, &device).unwrap_or_else(|e| panic!("{} {case}: {e}", spec.name()));
            assert!(report.holds(), "{report:?}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_runs() -> Result<(), Error> {
    for spec in ops::ALL {
        for case in spec.cases() {
            let mut seen = None;
            for device in devices().iter().chain(&devices()[1..2]) {
                let got = check::run(*spec, &case, device)?;
                let bits = |v: &[Vec<f32>]| v.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
                let got = (bits(&got.0), bits(&got.1));
                assert_eq!(*seen.get_or_insert(got.clone()), got, "{} {case} on {device}", spec.name());
            }
        }
    }
    Ok(())
}

#[test]
fn fused_equals_unfused() -> Result<(), Error> {
    let device = Device::cpu(Some(2))?;
    for spec in ops::ALL {
        for case in spec.cases() {
            if let Some(distance) = check::fusion_distance(*spec, &case, &device)? {
                let (rel_l2, _) = spec.accuracy(&case).limits();
                assert!(distance <= 3.0 * rel_l2, "{} {case}: fused differs from unfused by {distance:e}", spec.name());
            }
        }
    }
    Ok(())
}
