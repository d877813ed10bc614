//! The video track of an mp4 or mov file: where its samples lie and when they are shown (ISO/IEC 14496-12).
//!
//! Read here rather than by a crate because the files are untrusted: `re_mp4` 0.5 indexes its tables unchecked and
//! allocates a record for each of up to 2^32 samples a 12-byte box may claim. Here every count is bounded by the bytes
//! that back it, nesting is as deep as the code, and time is linear in what is read.

use std::io::{Read, Seek, SeekFrom};

/// The first video track.
#[derive(Default)]
pub(crate) struct Track {
    /// Four characters naming the codec, as in `avc1`.
    pub fourcc: [u8; 4],
    /// The codec's own description: the payload of `avcC`, `hvcC`, `esds`, `vpcC` or `av1C`.
    pub config: Vec<u8>,
    /// Ticks of `time` and `duration` per second.
    pub timescale: u32,
    /// In decoding order.
    pub samples: Vec<Sample>,
    /// The part that is shown, in ticks: [start, end).
    pub shown: Option<(i64, i64)>,
    /// Display matrix [a, b, c, d]: a stored point (x, y) is shown at (a x + c y, b x + d y), in units of 1/65536.
    pub matrix: [i32; 4],
    /// `colr` box: (matrix_coefficients, full range) as in ITU-T H.273.
    pub colour: Option<(u8, bool)>,
}

/// One coded picture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub offset: u64,
    pub bytes: u32,
    /// When it is shown, in ticks.
    pub time: i64,
    /// How long, in ticks.
    pub duration: u32,
    /// Whether decoding can start here.
    pub sync: bool,
}

/// Most samples in a track: 9 hours at 30 frames a second.
const MAX_SAMPLES: usize = 1 << 20;
/// Most boxes at the top level; a fragment has two.
const MAX_BOXES: usize = 1 << 20;
/// Most bytes of one header box; a real one has some 20 bytes a sample.
const MAX_HEADER: u64 = 64 << 20;

type Found<T> = std::result::Result<T, String>;

/// Reads the boxes of `file`, `length` bytes long.
pub(crate) fn read_track(file: &mut (impl Read + Seek), length: u64) -> Found<Track> {
    let mut track: Option<(Track, u32, u32)> = None; // with its id and the movie's timescale
    let mut defaults = [0; 2];
    let mut next_time = 0;
    let mut at = 0u64;
    for _ in 0..MAX_BOXES {
        if at.saturating_add(8) > length {
            break;
        }
        let mut head = [0; 16];
        let have = 16.min(length - at) as usize;
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut head[..have])).map_err(|e| e.to_string())?;
        let name = &head[4..8];
        let (header, size) = match u32::from_be_bytes(*head.first_chunk().expect("16 bytes")) {
            0 => (8, length - at),
            1 if have == 16 => (16, u64::from_be_bytes(*head.last_chunk().expect("16 bytes"))),
            n => (8, n as u64),
        };
        if size < header {
            return Err(format!("a box of {size} bytes at {at} is shorter than its own header"));
        }
        let body = (size - header).min(length - at - header);
        if matches!(name, b"moov" | b"moof") {
            if body < size - header {
                return Err("the file is cut off inside its header".into());
            }
            if body > MAX_HEADER {
                return Err(format!("a header of {body} bytes"));
            }
            let mut data = vec![0; body as usize];
            file.seek(SeekFrom::Start(at + header))
                .and_then(|_| file.read_exact(&mut data))
                .map_err(|e| e.to_string())?;
            if name == b"moov" {
                track = Some(read_movie(&data)?);
                if let Some(extends) = child(&data, b"mvex") {
                    let id = track.as_ref().map_or(0, |t| t.1);
                    defaults = read_defaults(extends, id);
                }
            } else if let Some((track, id, _)) = &mut track {
                super::demux_fragment::read_fragment(track, *id, defaults, &data, at, &mut next_time)?;
            }
        }
        at = at.saturating_add(size);
    }
    let Some((track, ..)) = track else {
        return Err("the file has no header (`moov`): it is cut off, or was never finished".into());
    };
    Ok(track)
}

/// [duration, size] that the samples of fragments have unless told otherwise, of track `id`.
fn read_defaults(extends: &[u8], id: u32) -> [u32; 2] {
    let of_track = children(extends).find(|(name, data)| name == b"trex" && u32_at(data, 4) == Some(id));
    of_track.map_or([0; 2], |(_, data)| [12, 16].map(|at| u32_at(data, at).unwrap_or(0)))
}

/// The first video track of `moov`, its id, and the timescale of the movie.
fn read_movie(movie: &[u8]) -> Found<(Track, u32, u32)> {
    let clock = child(movie, b"mvhd").ok_or("no `mvhd`")?;
    let movie_scale = u32_at(clock, if clock.first() == Some(&1) { 20 } else { 12 }).ok_or("a short `mvhd`")?;
    for (name, data) in children(movie) {
        if &name == b"trak" && path(data, &[b"mdia", b"hdlr"]).and_then(|h| h.get(8..12)) == Some(b"vide") {
            return read_video(data, movie_scale).map(|(track, id)| (track, id, movie_scale));
        }
    }
    Err("no video track".into())
}

fn read_video(data: &[u8], movie_scale: u32) -> Found<(Track, u32)> {
    let header = child(data, b"tkhd").ok_or("no `tkhd`")?;
    let wide = header.first() == Some(&1);
    let id = u32_at(header, if wide { 20 } else { 12 }).ok_or("a short `tkhd`")?;
    let cell = |i: usize| u32_at(header, if wide { 52 } else { 40 } + 4 * i).map(|v| v as i32);
    let (Some(a), Some(b), Some(c), Some(d)) = (cell(0), cell(1), cell(3), cell(4)) else {
        return Err("a short `tkhd`".into());
    };
    let clock = path(data, &[b"mdia", b"mdhd"]).ok_or("no `mdhd`")?;
    let timescale = u32_at(clock, if clock.first() == Some(&1) { 20 } else { 12 }).ok_or("a short `mdhd`")?;
    if timescale == 0 || movie_scale == 0 {
        return Err("a timescale of 0".into());
    }
    let table = path(data, &[b"mdia", b"minf", b"stbl"]).ok_or("no sample table")?;
    let mut track = Track { timescale, matrix: [a, b, c, d], ..Track::default() };
    read_description(&mut track, child(table, b"stsd").ok_or("no `stsd`")?)?;
    read_samples(&mut track, table)?;
    if let Some(list) = path(data, &[b"edts", b"elst"]) {
        track.shown = read_edit(list, timescale as f64 / movie_scale as f64)?;
    }
    Ok((track, id))
}

/// The part of the track that the edit list shows. Empty edits only delay it.
fn read_edit(list: &[u8], scale: f64) -> Found<Option<(i64, i64)>> {
    let wide = list.first() == Some(&1);
    let parts: Vec<(u64, i64)> = list
        .get(8..)
        .unwrap_or_default()
        .chunks_exact(if wide { 20 } else { 12 })
        .take(u32_at(list, 4).unwrap_or(0) as usize)
        .filter_map(|e| match wide {
            true => Some((u64_at(e, 0)?, u64_at(e, 8)? as i64)),
            false => Some((u32_at(e, 0)? as u64, u32_at(e, 4)? as i32 as i64)),
        })
        .filter(|&(_, start)| start >= 0)
        .collect();
    match parts[..] {
        [] => Ok(None),
        // A duration of 0 is the rest of a file written in fragments.
        [(0, start)] => Ok(Some((start, i64::MAX))),
        [(duration, start)] => Ok(Some((start, start.saturating_add((duration as f64 * scale).round() as i64)))),
        _ => Err("an edit list that joins several parts".into()),
    }
}

/// Codec, its configuration and its colours from the first sample entry.
fn read_description(track: &mut Track, descriptions: &[u8]) -> Found<()> {
    /// Bytes of a video sample entry before its boxes.
    const ENTRY: usize = 78;
    let (name, entry) = children(descriptions.get(8..).unwrap_or_default()).next().ok_or("an empty `stsd`")?;
    track.fourcc = name;
    for (name, data) in children(entry.get(ENTRY..).unwrap_or_default()) {
        match &name {
            b"avcC" | b"hvcC" | b"esds" | b"vpcC" | b"av1C" => track.config = data.to_vec(),
            b"colr" if data.len() >= 10 && (data.starts_with(b"nclx") || data.starts_with(b"nclc")) => {
                let full = data.starts_with(b"nclx") && data.get(10).is_some_and(|flags| flags & 0x80 != 0);
                track.colour = Some((data[9], full));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The samples of `stbl`. Files written in fragments have none here.
fn read_samples(track: &mut Track, table: &[u8]) -> Found<()> {
    let get = |name: &[u8; 4]| child(table, name).unwrap_or_default();
    let (sizes, times, offsets) = (get(b"stsz"), get(b"stts"), get(b"ctts"));
    let (runs, chunks, wide_chunks, syncs) = (get(b"stsc"), get(b"stco"), get(b"co64"), child(table, b"stss"));
    let fixed = u32_at(sizes, 4).unwrap_or(0);
    let count = u32_at(sizes, 8).unwrap_or(0) as usize;
    // With a common size no bytes back the count; the clock's table then does, by the loop below.
    if count > MAX_SAMPLES || (fixed == 0 && count * 4 > sizes.len().saturating_sub(12)) {
        return Err(format!("{count} samples"));
    }
    let chunk_at = |i: usize| match wide_chunks {
        [] => u32_at(chunks, 8 + 4 * i).map(u64::from),
        _ => u64_at(wide_chunks, 8 + 8 * i),
    };
    let mut clock = Runs::new(times);
    let mut shift = Runs::new(offsets);
    let mut sync = 0; // index into `stss`
    let (mut run, mut chunk, mut left, mut offset) = (0, 0, 0, 0);
    let mut time = 0;
    for i in 0..count {
        while left == 0 {
            // stsc: (first chunk, samples per chunk, description), chunks counted from 1.
            while u32_at(runs, 8 + 12 * (run + 1)).is_some_and(|first| first as usize <= chunk + 1) {
                run += 1;
            }
            left = u32_at(runs, 8 + 12 * run + 4).ok_or("a short `stsc`")?;
            offset = chunk_at(chunk).ok_or("fewer chunks than samples need")?;
            chunk += 1;
        }
        let bytes = if fixed != 0 { fixed } else { u32_at(sizes, 12 + 4 * i).ok_or("a short `stsz`")? };
        let duration = clock.next().ok_or("fewer times than samples")?;
        let delay = if offsets.is_empty() { 0 } else { shift.next().unwrap_or(0) as i32 };
        while syncs.and_then(|s| u32_at(s, 8 + 4 * sync)).is_some_and(|n| (n as usize) < i + 1) {
            sync += 1;
        }
        let is_sync = syncs.is_none_or(|s| u32_at(s, 8 + 4 * sync) == Some(i as u32 + 1));
        track.samples.push(Sample { offset, bytes, time: time + delay as i64, duration, sync: is_sync });
        offset = offset.saturating_add(bytes as u64);
        time += duration as i64;
        left -= 1;
    }
    Ok(())
}

/// A run-length table (`stts`, `ctts`) read value by value.
struct Runs<'a> {
    table: &'a [u8],
    left: u32,
    value: u32,
}

impl<'a> Runs<'a> {
    fn new(table: &'a [u8]) -> Self {
        Runs { table: table.get(8..).unwrap_or_default(), left: 0, value: 0 }
    }
}

impl Iterator for Runs<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.left == 0 {
            let (entry, rest) = self.table.split_first_chunk::<8>()?;
            (self.left, self.value) = (u32_at(entry, 0)?, u32_at(entry, 4)?);
            self.table = rest;
        }
        self.left -= 1;
        Some(self.value)
    }
}

impl Track {
    /// Adds a sample of a fragment.
    pub fn push(&mut self, sample: Sample) -> Found<()> {
        if self.samples.len() == MAX_SAMPLES {
            return Err(format!("more than {MAX_SAMPLES} samples"));
        }
        self.samples.push(sample);
        Ok(())
    }
}

/// The boxes in `data`, up to the first that does not fit.
pub(crate) fn children(mut data: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let name = *data.get(4..)?.first_chunk::<4>()?;
        let (header, size) = match u32_at(data, 0)? {
            0 => (8, data.len()),
            1 => (16, usize::try_from(u64_at(data, 8)?).ok()?),
            n => (8, n as usize),
        };
        let body = data.get(header..size)?;
        data = &data[size..];
        Some((name, body))
    })
}

pub(crate) fn child<'a>(data: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    children(data).find(|(found, _)| found == name).map(|(_, body)| body)
}

fn path<'a>(data: &'a [u8], names: &[&[u8; 4]]) -> Option<&'a [u8]> {
    names.iter().try_fold(data, |data, name| child(data, name))
}

pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

pub(crate) fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}
