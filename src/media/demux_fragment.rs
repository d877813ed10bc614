//! Samples of an mp4 file written in fragments (`moof`), as screen recorders and streaming sites do.

use super::demux::{Sample, Track, child, children, u32_at, u64_at};

/// Adds the samples that the fragment `data`, whose box begins at byte `start` of the file, has of track `id`.
/// `defaults` are [duration, size]; `next_time` carries the decoding time from fragment to fragment, in ticks.
pub(crate) fn read_fragment(
    track: &mut Track,
    id: u32,
    defaults: [u32; 2],
    data: &[u8],
    start: u64,
    next_time: &mut i64,
) -> Result<(), String> {
    for (name, part) in children(data) {
        let header = child(part, b"tfhd").unwrap_or_default();
        if &name != b"traf" || u32_at(header, 4) != Some(id) {
            continue;
        }
        let mut fields = Fields { data: header, at: 8 };
        let flags = u32_at(header, 0).unwrap_or(0);
        let base = if flags & 1 != 0 { fields.wide()? } else { start };
        fields.skip_if(flags & 2 != 0)?;
        let duration = fields.if_set(flags & 8 != 0)?.unwrap_or(defaults[0]);
        let bytes = fields.if_set(flags & 0x10 != 0)?.unwrap_or(defaults[1]);
        if let Some(clock) = child(part, b"tfdt") {
            let time = if clock.first() == Some(&1) { u64_at(clock, 4) } else { u32_at(clock, 4).map(u64::from) };
            // Half of i64 leaves room for 2^20 samples of 2^32 ticks.
            *next_time = time.ok_or("a short `tfdt`")?.min(i64::MAX as u64 / 2) as i64;
        }
        let mut offset = base;
        for (name, run) in children(part) {
            if &name == b"trun" {
                offset = read_run(track, run, [duration, bytes], base, offset, next_time)?;
            }
        }
    }
    Ok(())
}

/// One `trun`; gives back where its data ends.
fn read_run(
    track: &mut Track,
    run: &[u8],
    defaults: [u32; 2],
    base: u64,
    follows: u64,
    next_time: &mut i64,
) -> Result<u64, String> {
    let flags = u32_at(run, 0).ok_or("a short `trun`")?;
    let count = u32_at(run, 4).ok_or("a short `trun`")?;
    let mut fields = Fields { data: run, at: 8 };
    let mut offset = match fields.if_set(flags & 1 != 0)? {
        Some(distance) => base.saturating_add_signed(distance as i32 as i64),
        None => follows,
    };
    fields.skip_if(flags & 4 != 0)?;
    for _ in 0..count {
        let duration = fields.if_set(flags & 0x100 != 0)?.unwrap_or(defaults[0]);
        let bytes = fields.if_set(flags & 0x200 != 0)?.unwrap_or(defaults[1]);
        fields.skip_if(flags & 0x400 != 0)?;
        let delay = fields.if_set(flags & 0x800 != 0)?.unwrap_or(0) as i32;
        // Sync flags are not needed: the reader looks for an IDR picture itself, and may start at the first sample.
        let sync = track.samples.is_empty();
        track.push(Sample { offset, bytes, time: *next_time + delay as i64, duration, sync })?;
        offset = offset.saturating_add(bytes as u64);
        *next_time = next_time.saturating_add(duration as i64).min(i64::MAX / 2);
    }
    Ok(offset)
}

/// Reads the optional fields of a box in turn.
struct Fields<'a> {
    data: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn if_set(&mut self, set: bool) -> Result<Option<u32>, String> {
        if !set {
            return Ok(None);
        }
        let value = u32_at(self.data, self.at).ok_or("a fragment that ends early")?;
        self.at += 4;
        Ok(Some(value))
    }

    fn skip_if(&mut self, set: bool) -> Result<(), String> {
        self.if_set(set).map(|_| ())
    }

    fn wide(&mut self) -> Result<u64, String> {
        let value = u64_at(self.data, self.at).ok_or("a fragment that ends early")?;
        self.at += 8;
        Ok(value)
    }
}
