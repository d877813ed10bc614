//! How much noise a latent holds at every diffusion time, and the times that DDIM visits.
//!
//! 1000 times; `alpha_bar_t` is the product of `1 - beta_s` for s <= t. AnimateDiff's betas are linear.

use crate::{Error, Result};

/// Shape of the betas between 0.00085 and 0.012.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Linear in beta: AnimateDiff.
    #[default]
    Linear,
    /// Linear in the square root of beta: Stable Diffusion.
    ScaledLinear,
}

/// Signal and noise at every diffusion time.
#[derive(Clone, Debug)]
pub struct Schedule {
    alpha_bar: Vec<f64>,
}

impl Schedule {
    /// Number of diffusion times.
    pub const TIMES: usize = 1000;

    /// The schedule with betas of the given shape.
    pub fn new(betas: BetaSchedule) -> Self {
        let (first, last) = (0.00085_f64, 0.012_f64);
        let between = |a: f64, b: f64, t: usize| a + (b - a) * t as f64 / (Self::TIMES - 1) as f64;
        let beta = |t| match betas {
            BetaSchedule::Linear => between(first, last, t),
            BetaSchedule::ScaledLinear => between(first.sqrt(), last.sqrt(), t).powi(2),
        };
        let mut product = 1.0;
        let alpha_bar = (0..Self::TIMES).map(|t| {
            product *= 1.0 - beta(t);
            product
        });
        Schedule { alpha_bar: alpha_bar.collect() }
    }

    /// Share of signal power at time `t`, below [`Self::TIMES`].
    pub fn alpha_bar(&self, t: usize) -> f64 {
        self.alpha_bar[t]
    }

    /// The same one DDIM step of a run of `steps` steps later; 1, a clean latent, after the last.
    pub fn alpha_bar_after(&self, t: usize, steps: usize) -> f64 {
        t.checked_sub(Self::TIMES / steps).map_or(1.0, |previous| self.alpha_bar[previous])
    }

    /// The times that `steps` DDIM steps visit, descending: leading spacing, offset by one.
    ///
    /// # Errors
    /// [`Error::Config`] unless `steps` is 1 to 999.
    pub fn ddim_times(steps: usize) -> Result<Vec<usize>> {
        if steps == 0 || steps >= Self::TIMES {
            return Err(Error::config("steps", format!("{steps} DDIM steps; 1 to {} are possible", Self::TIMES - 1)));
        }
        Ok((0..steps).rev().map(|i| i * (Self::TIMES / steps) + 1).collect())
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::new(BetaSchedule::Linear)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_share_matches_the_published_values() {
        let schedule = Schedule::default();
        for (t, want) in [
            (0, 0.99915),
            (1, 0.99828957),
            (201, 0.67117938),
            (401, 0.28835571),
            (601, 0.07908424),
            (801, 0.01383198),
            (961, 0.00247833),
            (999, 0.00157896),
        ] {
            assert!((schedule.alpha_bar(t) - want).abs() < 1e-8, "alpha_bar({t}) = {}", schedule.alpha_bar(t));
        }
    }

    #[test]
    fn ddim_visits_leading_times_and_ends_clean() {
        assert_eq!(Schedule::ddim_times(5).unwrap(), [801, 601, 401, 201, 1]);
        assert_eq!(Schedule::ddim_times(25).unwrap()[..2], [961, 921]);
        assert_eq!(Schedule::ddim_times(999).unwrap()[0], 999);
        assert!(Schedule::ddim_times(0).is_err() && Schedule::ddim_times(1000).is_err());
        assert_eq!(Schedule::default().alpha_bar_after(1, 5), 1.0);
    }
}
