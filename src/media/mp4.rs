//! Writing mp4 that browsers and QuickTime play: Constrained Baseline H.264 by `rusty_h264`, the header before the
//! data, one sample description, colours tagged in the stream and in the container.

use std::io::Write;
use std::path::Path;

use rusty_h264::{Encoder, EncoderConfig};

use super::bits::with_description;
use super::yuv::from_rgb;
use super::{Frame, check_clip, check_fps};
use crate::fs::write_atomically;
use crate::{Error, Result};

/// Quantiser of every frame, 0 to 51: visually lossless, about 45 dB.
const QP: u8 = 18;
/// Frames from one that can be jumped to, to the next.
const KEY_INTERVAL: u32 = 48;
/// Primaries, transfer and matrix of ITU-T H.273: sRGB's primaries, BT.709's curve, BT.601's matrix.
const COLOUR: [u8; 3] = [1, 1, 6];
/// Ticks a frame is shown.
const TICKS: u32 = 1000;

/// Writes `frames` to `path` as H.264 in mp4, 4:2:0, limited-range BT.601, `fps` frames a second (to 1/1000). Odd sides
/// grow by one pixel, since 4:2:0 has none.
///
/// # Errors
/// [`Error::Shape`] for no frames or frames of several sizes, [`Error::Config`] for a rate or size out of range,
/// [`Error::Io`].
pub fn write_mp4(path: impl AsRef<Path>, frames: &[Frame], fps: f64) -> Result<()> {
    let (width, height) = check_clip("mp4", frames)?;
    check_fps(fps)?;
    let size = (width.next_multiple_of(2), height.next_multiple_of(2));
    // Level 5.2 holds 36864 macroblocks.
    if size.0.div_ceil(16) * size.1.div_ceil(16) > 36864 {
        return Err(Error::config("--width", format!("{width}x{height} is more than H.264 holds (4096x2304)")));
    }
    let rate = (fps * TICKS as f64).round() as u32;
    let failed = |detail: String| Error::Check { detail: format!("mp4 encoder: {detail}") };
    let stream = Stream::encode(frames, size, rate).map_err(failed)?;
    let head = stream.head(size, rate).ok_or_else(|| failed("more than 4 GiB".into()))?;
    write_atomically(path, |file| {
        file.write_all(&head)?;
        stream.samples.iter().try_for_each(|sample| file.write_all(sample))
    })
}

/// A coded clip.
struct Stream {
    sps: Vec<u8>,
    pps: Vec<u8>,
    /// NAL units, each after its length, one sample a frame.
    samples: Vec<Vec<u8>>,
    /// Samples that can be jumped to, counted from 1.
    keys: Vec<u32>,
}

impl Stream {
    fn encode(frames: &[Frame], (width, height): (usize, usize), rate: u32) -> Result<Self, String> {
        let mut config = EncoderConfig::baseline(width, height);
        config.qp = QP;
        config.gop_size = KEY_INTERVAL;
        config.framerate = rate as f32 / TICKS as f32;
        // Its default spends the bits where they are seen and the dark, smooth parts lose some; frames are few here.
        config.aq_strength = 0.0;
        config.preset = rusty_h264::Preset::Balanced;
        let mut encoder = Encoder::new(config).map_err(|e| format!("{e:?}"))?;
        let mut stream = Stream { sps: Vec::new(), pps: Vec::new(), samples: Vec::new(), keys: Vec::new() };
        for frame in frames {
            let unit = encoder.try_encode(&from_rgb(frame)).map_err(|e| format!("{e:?}"))?;
            let mut sample = Vec::with_capacity(unit.len());
            for nal in split(&unit) {
                match nal[0] & 31 {
                    7 => {
                        stream.sps =
                            with_description(nal, COLOUR, (rate, TICKS)).ok_or("an unexpected parameter set")?
                    }
                    8 => stream.pps = nal.to_vec(),
                    kind => {
                        if kind == 5 && stream.keys.last() != Some(&(stream.samples.len() as u32 + 1)) {
                            stream.keys.push(stream.samples.len() as u32 + 1);
                        }
                        sample.extend((nal.len() as u32).to_be_bytes());
                        sample.extend(nal);
                    }
                }
            }
            stream.samples.push(sample);
        }
        if stream.sps.len() < 4 || stream.pps.is_empty() || stream.samples.iter().any(Vec::is_empty) {
            return Err("a stream with parts missing".into());
        }
        Ok(stream)
    }

    /// All that comes before the samples. `None` if they do not fit in 32-bit offsets.
    fn head(&self, size: (usize, usize), rate: u32) -> Option<Vec<u8>> {
        let kind = boxed(b"ftyp", &[b"isom", &512u32.to_be_bytes(), b"isom", b"iso2", b"avc1", b"mp41"]);
        let data = self.samples.iter().map(Vec::len).sum::<usize>();
        // The offset's value does not change its length, so the header can be made twice.
        let before = kind.len() + self.movie(size, rate, 0).len() + 8;
        u32::try_from(before + data).ok()?;
        let movie = self.movie(size, rate, before as u32);
        Some([kind, movie, ((data + 8) as u32).to_be_bytes().to_vec(), b"mdat".to_vec()].concat())
    }

    fn movie(&self, (width, height): (usize, usize), rate: u32, offset: u32) -> Vec<u8> {
        let count = self.samples.len() as u32;
        let duration = count * TICKS;
        let matrix = words(&[0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x4000_0000]);
        // Version and flags, two dates, timescale, duration, rate 1, volume 1, ..., next track.
        let clock = words(&[0, 0, 0, rate, duration, 0x10000, 0x0100_0000, 0, 0]);
        let movie_header = boxed(b"mvhd", &[&clock, &matrix, &[0; 24], &words(&[2])]);
        // Flags 7: enabled, in the movie, in the preview.
        let about = words(&[7, 0, 0, 1, 0, duration, 0, 0, 0, 0]);
        let area = words(&[(width as u32) << 16, (height as u32) << 16]);
        let track_header = boxed(b"tkhd", &[&about, &matrix, &area]);
        // Language "und".
        let media_header = boxed(b"mdhd", &[&words(&[0, 0, 0, rate, duration, 0x55c4_0000])]);
        let handler = boxed(b"hdlr", &[&words(&[0, 0]), b"vide", &[0; 12], b"VideoHandler\0"]);
        let here = boxed(b"url ", &[&words(&[1])]);
        let data = boxed(b"dinf", &[&boxed(b"dref", &[&words(&[0, 1]), &here])]);
        let sizes: Vec<u32> = self.samples.iter().map(|s| s.len() as u32).collect();
        let table = boxed(
            b"stbl",
            &[
                &boxed(b"stsd", &[&words(&[0, 1]), &self.description(width as u16, height as u16)]),
                &boxed(b"stts", &[&words(&[0, 1, count, TICKS])]),
                &boxed(b"stss", &[&words(&[0, self.keys.len() as u32]), &words(&self.keys)]),
                &boxed(b"stsc", &[&words(&[0, 1, 1, count, 1])]),
                &boxed(b"stsz", &[&words(&[0, 0, count]), &words(&sizes)]),
                &boxed(b"stco", &[&words(&[0, 1, offset])]),
            ],
        );
        let information = boxed(b"minf", &[&boxed(b"vmhd", &[&words(&[1, 0, 0])]), &data, &table]);
        let media = boxed(b"mdia", &[&media_header, &handler, &information]);
        boxed(b"moov", &[&movie_header, &boxed(b"trak", &[&track_header, &media])])
    }

    fn description(&self, width: u16, height: u16) -> Vec<u8> {
        let sets = |count: u8, set: &[u8]| [&[count], &(set.len() as u16).to_be_bytes()[..], set].concat();
        // Version 1, profile, constraints, level; lengths of 4 bytes; one set of each kind.
        let config = [&[1], &self.sps[1..4], &[0xff], &sets(0xe1, &self.sps), &sets(1, &self.pps)].concat();
        let codes = COLOUR.map(|code| [0, code]).concat();
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        boxed(
            b"avc1",
            &[
                &[0, 0, 0, 0, 0, 0, 0, 1],
                &[0; 16],
                &size,
                // 72 dpi both ways, one frame a sample, no name, depth 24.
                &words(&[0x48_0000, 0x48_0000, 0]),
                &1u16.to_be_bytes(),
                &[0; 32],
                &[0, 24, 0xff, 0xff],
                &boxed(b"avcC", &[&config]),
                &boxed(b"colr", &[b"nclx", &codes, &[0]]),
                &boxed(b"pasp", &[&words(&[1, 1])]),
            ],
        )
    }
}

/// A box: its length, its name, its content.
fn boxed(name: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    [&(content.len() as u32 + 8).to_be_bytes()[..], name, &content].concat()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

/// The NAL units of an Annex B stream.
fn split(stream: &[u8]) -> Vec<&[u8]> {
    let starts: Vec<usize> = (0..stream.len().saturating_sub(2)).filter(|&i| stream[i..i + 3] == [0, 0, 1]).collect();
    let ends = starts.iter().skip(1).copied().chain([stream.len()]);
    let units = starts.iter().zip(ends).map(|(&start, end)| {
        let unit = &stream[start + 3..end];
        // The fourth byte of a long start code belongs to no unit, and none ends in a zero.
        &unit[..unit.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)]
    });
    units.filter(|unit| !unit.is_empty()).collect()
}
