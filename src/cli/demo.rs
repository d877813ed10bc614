//! The inputs of the demo, drawn: pictures of a striped ball, and a clip of a box that jumps.

use std::path::Path;

use super::config::Config;
use super::init_weights;
use super::kind::Value;
use super::progress::Reporter;
use crate::media::{self, Frame};
use crate::{DType, Result};

/// Settings of a demo that the user did not give: what it is about, and few enough steps for two minutes.
const SETTINGS: [(&str, &str); 12] = [
    ("data.subject.name", "striped ball"),
    ("data.motion.prompt", "a box is jumping"),
    ("sample.prompts", "a striped ball is jumping on the grass"),
    ("data.width", "128"),
    ("data.height", "128"),
    ("spatial.steps", "40"),
    ("temporal.steps", "12"),
    ("ttt.steps", "3"),
    ("ttt.ref_steps", "2"),
    ("sample.steps", "8"),
    ("spatial.rank", "8"),
    ("temporal.rank", "8"),
];

/// Puts the demo's settings in the place of defaults.
pub fn fill(config: &mut Config) {
    for (key, text) in SETTINGS {
        if !config.given(key) {
            let kind = super::settings::find(key).expect("the demo should name settings").kind;
            config.put(key, kind.parse(text).expect("the demo's settings should be valid"));
        }
    }
}

/// Writes what the user did not give, random weights and drawn inputs, into the run folder.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io).
pub fn prepare(config: &mut Config, folder: &Path, reporter: &mut Reporter) -> Result<()> {
    let side = config.count("data.width").max(config.count("data.height"));
    let (seed, frames) = (config.seed(), config.count("data.frames"));
    let path = |name: &str| std::path::absolute(folder.join(name)).unwrap_or_else(|_| folder.join(name));
    let (weights, subject, motion) = (path("weights"), path("inputs/subject"), path("inputs/motion"));
    reporter.say("the demo's weights are random and untrained: its videos show that everything runs, not the prompt");
    let mut put = |key, path: &Path| {
        if !config.given(key) {
            config.put(key, Value::Text(path.to_string_lossy().into_owned()));
        }
    };
    let made = init_weights::write(&weights, "tiny", None, seed, DType::F32)?;
    put("model.base", &made.base);
    put("model.motion_module", &made.motion);
    put("data.subject.path", &subject);
    put("data.motion.path", &motion);
    media::write_png_frames(&subject, &pictures(side)?)?;
    media::write_png_frames(&motion, &clip(side, frames)?)
}

type Colour = [f32; 3];

/// Four pictures of the ball in different places.
///
/// # Errors
/// Those of [`Frame`].
pub fn pictures(side: usize) -> Result<Vec<Frame>> {
    // centre x, centre y, radius, tilt of the stripes, sky
    const VIEWS: [(f32, f32, f32, f32, Colour); 4] = [
        (0.50, 0.55, 0.30, 0.3, [0.55, 0.75, 0.95]),
        (0.42, 0.60, 0.24, -0.5, [0.95, 0.85, 0.65]),
        (0.60, 0.52, 0.34, 0.9, [0.75, 0.70, 0.90]),
        (0.47, 0.48, 0.27, 0.0, [0.60, 0.85, 0.75]),
    ];
    let view = |&(x, y, radius, tilt, sky): &(f32, f32, f32, f32, Colour)| {
        draw(side, |px, py| ball([px - x, py - y], radius, tilt).unwrap_or_else(|| ground(py, sky)))
    };
    VIEWS.iter().map(view).collect()
}

/// A box that squats, jumps and lands, `frames` frames long, twice over.
///
/// # Errors
/// Those of [`Frame`].
pub fn clip(side: usize, frames: usize) -> Result<Vec<Frame>> {
    let frame = |f: usize| {
        let phase = (2 * f) as f32 / frames as f32 % 1.0;
        let height = (std::f32::consts::PI * phase).sin() * 0.35;
        // Volume is kept: flat on the ground, tall in the air.
        let stretch = 0.85 + 0.9 * height;
        let (half_w, half_h) = (0.13 / stretch, 0.13 * stretch);
        let base = 0.82 - height;
        draw(side, move |x, y| {
            let inside = (x - 0.5).abs() < half_w && y < base && y > base - 2.0 * half_h;
            let shadow = ((x - 0.5) / 0.16).powi(2) + ((y - 0.84) / 0.03).powi(2) < 1.0 - height;
            match (inside, shadow) {
                (true, _) => [0.85, 0.30 + 0.3 * (base - y), 0.20],
                (_, true) => [0.20, 0.35, 0.15],
                _ => ground(y, [0.70, 0.82, 0.95]),
            }
        })
    };
    (0..frames).map(frame).collect()
}

/// The ball's colour at an offset from its centre, or `None` beside it.
fn ball([x, y]: [f32; 2], radius: f32, tilt: f32) -> Option<Colour> {
    let (u, v) = (x / radius, y / radius);
    let square = u * u + v * v;
    if square > 1.0 {
        return None;
    }
    let across = u * tilt.cos() + v * tilt.sin();
    let stripe = (across.asin() * 5.0).rem_euclid(2.0) < 1.0;
    let base: Colour = if stripe { [0.90, 0.15, 0.20] } else { [0.95, 0.92, 0.85] };
    let light = 0.45 + 0.55 * (1.0 - square).sqrt() * (1.0 - 0.35 * (u + v));
    Some(base.map(|c| c * light.clamp(0.0, 1.1)))
}

/// Grass below the horizon, sky above.
fn ground(y: f32, sky: Colour) -> Colour {
    if y > 0.8 { [0.35, 0.60 - 0.4 * (y - 0.8), 0.25] } else { sky.map(|c| c * (0.75 + 0.3 * y)) }
}

/// A square picture of `colour(x, y)`, both from 0 to 1; four samples a pixel.
fn draw(side: usize, colour: impl Fn(f32, f32) -> Colour) -> Result<Frame> {
    let mut values = Vec::with_capacity(side * side * 3);
    for (row, column) in (0..side).flat_map(|row| (0..side).map(move |column| (row, column))) {
        let mut sum = [0.0; 3];
        for (dy, dx) in [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)] {
            let sample = colour((column as f32 + dx) / side as f32, (row as f32 + dy) / side as f32);
            sum.iter_mut().zip(sample).for_each(|(s, c)| *s += c);
        }
        values.extend(sum.map(|s| s / 2.0 - 1.0)); // four samples in [0, 1] -> [-1, 1]
    }
    Frame::from_values(side, side, &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_differ_and_the_box_moves() {
        let pictures = pictures(32).unwrap();
        assert!(pictures.iter().all(|p| p.pixels.len() == 32 * 32 * 3));
        assert!(pictures.windows(2).all(|w| w[0] != w[1]));
        let clip = clip(32, 16).unwrap();
        assert_eq!(clip.len(), 16);
        assert!(clip.windows(2).filter(|w| w[0] != w[1]).count() > 10);
    }
}
