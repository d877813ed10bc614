//! Reproducible weights: a function of a model's parameter names and shapes alone, so that two implementations
//! can be compared without exchanging files. `h(p, i)` is position `i` of SplitMix64 stream `p`, cut to 24 bits.

use std::collections::HashMap;

use super::params::{Fetched, ParamSource};
use crate::{Error, Result, Shape};

/// Parameter number `p` of the byte-sorted names is drawn from stream `p`, with `v = 2h - 1`: `1 + 0.1v` for
/// vectors whose name ends in "weight", `0.1v` for other vectors, else `v * sqrt(3 / fan_in) * gain`, where
/// `fan_in` is the product of all dimensions but the first.
pub struct RuleWeights {
    places: HashMap<String, (u64, Shape)>,
    gain: f64,
}

impl RuleWeights {
    /// Weights for exactly these parameters, in any order.
    pub fn new(names: &[(String, Shape)], gain: f64) -> Self {
        let mut sorted: Vec<_> = names.iter().collect();
        sorted.sort_by_key(|(name, _)| name);
        let places = sorted.into_iter().zip(0..).map(|((name, shape), p)| (name.clone(), (p, *shape)));
        RuleWeights { places: places.collect(), gain }
    }

    /// `h(stream, index)`: a number in [0, 1) that f32 holds exactly.
    pub fn uniform(stream: u64, index: u64) -> f64 {
        let s = (stream << 32).wrapping_add(index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (s ^ (s >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    }

    /// `count` input numbers of variance one from `stream`: `sqrt(3) (2h - 1)`, row-major.
    pub fn signal(stream: u64, count: usize) -> Vec<f32> {
        (0..count as u64).map(|i| (3_f64.sqrt() * (2.0 * Self::uniform(stream, i) - 1.0)) as f32).collect()
    }

    /// The numbers of one parameter.
    fn numbers(&self, name: &str, p: u64, shape: Shape) -> Vec<f32> {
        let (offset, scale, gain) = match shape.len() {
            0 => (0.0, 0.1, 1.0),
            1 => (if name.ends_with("weight") { 1.0 } else { 0.0 }, 0.1, 1.0),
            _ => (0.0, (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt(), self.gain),
        };
        let at = |i| (offset + (2.0 * Self::uniform(p, i) - 1.0) * scale * gain) as f32;
        (0..shape.count() as u64).map(at).collect()
    }
}

impl ParamSource for RuleWeights {
    fn fetch(&self, name: &str, shape: Shape) -> Result<Fetched<'_>> {
        match self.places.get(name) {
            Some(&(p, known)) if known == shape => Ok(Fetched::Data(self.numbers(name, p, shape).into())),
            Some((_, known)) => Err(Error::shape("rule", format!("{name} is {known}, not {shape}"))),
            None => Err(Error::shape("rule", format!("{name} is not among the names of these weights"))),
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_give_the_published_numbers() {
        let h = |p, i| RuleWeights::uniform(p, i);
        assert_eq!([h(0, 0), h(0, 1), h(0, 2)], [0.8833107948303223, 0.4315279722213745, 0.02643376588821411]);
        assert_eq!([h(7, 0), h(7, 1)], [0.7210923433303833, 0.15965938568115234]);
    }

    #[test]
    fn the_place_among_sorted_names_chooses_the_stream() {
        let names = ["b.weight", "a.bias", "a.weight", "c"];
        let shapes = [[2, 3].into(), [2].into(), [2].into(), Shape::new(&[])];
        let names: Vec<_> = names.map(String::from).into_iter().zip(shapes).collect();
        let rule = RuleWeights::new(&names, 0.5);
        let get = |name: &str, shape: Shape| match rule.fetch(name, shape).unwrap() {
            Fetched::Data(data) => data.to_f32().to_vec(),
            Fetched::Meta => panic!("the rule should give numbers"),
        };
        let v = |p, i| 2.0 * RuleWeights::uniform(p, i) - 1.0;
        assert_eq!(get("a.bias", [2].into()), [(0.1 * v(0, 0)) as f32, (0.1 * v(0, 1)) as f32]);
        assert_eq!(get("a.weight", [2].into())[1], (1.0 + 0.1 * v(1, 1)) as f32);
        assert_eq!(get("b.weight", [2, 3].into())[5], (v(2, 5) * 0.5) as f32);
        assert_eq!(get("c", Shape::new(&[])), [(0.1 * v(3, 0)) as f32]);
        assert!(rule.fetch("a.bias", [3].into()).is_err() && rule.fetch("d", [3].into()).is_err());
    }
}
