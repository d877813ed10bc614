//! The NAL units of H.264 in mp4 (ISO/IEC 14496-15): taken from samples, checked, and put in the form decoders read.

use super::bits::Sps;
use super::picture::check_size;

/// NAL unit types, the low 5 bits of the first byte.
pub(crate) const IDR: u8 = 5;
pub(crate) const SPS: u8 = 7;

/// The NAL units of a sample, each after its length of `length_bytes` bytes and at least a byte long.
pub(crate) fn units(mut data: &[u8], length_bytes: usize) -> Result<Vec<&[u8]>, String> {
    let mut units = Vec::new();
    while !data.is_empty() {
        let (head, rest) = data.split_at_checked(length_bytes).ok_or("a picture that ends early")?;
        let bytes = head.iter().fold(0, |n, &byte| n << 8 | byte as usize);
        let (unit, rest) = rest.split_at_checked(bytes).ok_or("a picture that ends early")?;
        if !unit.is_empty() {
            units.push(unit);
        }
        data = rest;
    }
    Ok(units)
}

/// Adds a NAL unit in Annex B form. One with a start code inside would smuggle in units that nobody checked.
pub(crate) fn append(unit: &mut Vec<u8>, nal: &[u8]) -> Result<(), String> {
    if nal.windows(3).any(|w| w == [0, 0, 1]) {
        return Err("a start code inside a NAL unit".into());
    }
    unit.extend([0, 0, 0, 1]);
    unit.extend(nal);
    Ok(())
}

/// The SPS and PPS in an `avcC` from its sixth byte on.
pub(crate) fn parameter_sets(mut data: &[u8]) -> Vec<&[u8]> {
    let mut sets = Vec::new();
    for mask in [31, 255] {
        let Some((&count, rest)) = data.split_first() else { break };
        data = rest;
        for _ in 0..count & mask {
            let Some((head, rest)) = data.split_first_chunk::<2>() else { return sets };
            let Some((set, rest)) = rest.split_at_checked(u16::from_be_bytes(*head) as usize) else { return sets };
            if !set.is_empty() {
                sets.push(set);
            }
            data = rest;
        }
    }
    sets
}

pub(crate) fn first_sps(config: &[u8]) -> Option<Sps> {
    parameter_sets(config.get(5..)?).into_iter().find(|nal| nal[0] & 31 == SPS).and_then(Sps::read)
}

/// An SPS that the decoder can be given.
pub(crate) fn checked_sps(nal: &[u8]) -> Result<Sps, String> {
    let sps = Sps::read(nal).ok_or("an unreadable parameter set")?;
    if sps.chroma_format != 1 {
        return Err(format!("chroma format {} (4:2:0 is 1)", sps.chroma_format));
    }
    if sps.bit_depth != 8 {
        return Err(format!("{} bits a channel", sps.bit_depth));
    }
    if !sps.progressive {
        return Err("interlaced".into());
    }
    if sps.references > 16 {
        return Err(format!("{} reference frames", sps.references));
    }
    check_size(sps.coded.0, sps.coded.1)?;
    check_size(sps.crop.2, sps.crop.3)?;
    Ok(sps)
}
