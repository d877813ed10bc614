//! The built-in video reader: 8-bit 4:2:0 progressive H.264 in mp4 or mov, decoded by `rusty_h264`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rusty_h264::{Decoder, YuvFrame};

use super::Frame;
use super::bits::Sps;
use super::clip::{Clip, ClipOptions, Picker, Refusal};
use super::codec::codec_name;
use super::demux::{Sample, Track, read_track};
use super::nal::{IDR, SPS, append, checked_sps, first_sps, parameter_sets, units};
use super::yuv::{Colour, to_rgb};
use crate::{Error, Result};

/// Most pixels decoded on the way to the last frame taken: some 4000 frames of 1080p, a minute's work.
const MAX_DECODED: usize = 1 << 33;
/// Most bytes of one coded picture.
const MAX_SAMPLE: u32 = 64 << 20;

/// Reads the clip, or says why another reader must.
///
/// # Errors
/// [`Error::Io`], and [`Error::Input`] for a clip that is too short or too large: no other reader helps there.
pub(crate) fn read(path: &Path, options: &ClipOptions) -> Result<Result<Clip, Refusal>> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "read"))?.len();
    let track = match read_track(&mut file, length) {
        Ok(track) => track,
        Err(reason) => return Ok(Err(Refusal { codec: "mp4/mov".into(), reason })),
    };
    let refuse = |reason: String| Ok(Err(Refusal { codec: codec_name(&track), reason }));
    let stream = match Stream::new(&track) {
        Ok(stream) => stream,
        Err(reason) => return refuse(reason),
    };
    let order = display_order(&track);
    let scale = 1.0 / track.timescale as f64;
    let (Some(first), Some(last)) = (order.first(), order.last()) else {
        return refuse("no pictures".into());
    };
    let begin = track.samples[*first].time;
    let end = track.samples[*last].time + track.samples[*last].duration as i64;
    let mut picker = Picker::new(options, options.fps);
    let mut copies = vec![0; track.samples.len()]; // by decoding order
    for (i, &sample) in order.iter().enumerate() {
        let until = order.get(i + 1).map_or(end, |&next| track.samples[next].time);
        copies[sample] = picker.copies((until - begin) as f64 * scale);
    }
    let fps = order.len() as f64 / ((end - begin) as f64 * scale).max(1e-3);
    let (codec, total) = (codec_name(&track), Some(picker.counted()));
    if !picker.done() {
        return picker.finish(path, Vec::new(), fps, "h264", codec, total).map(Ok);
    }
    let mut taken = vec![None; track.samples.len()];
    let decoded = stream.decode(&mut file, length, &copies, |i, picture, sps| {
        let upright = turned(stream.shown(picture, sps)?, stream.turn);
        taken[i] = Some(upright.fit(options.width, options.height, options.fit));
        Ok(())
    });
    if let Err(reason) = decoded {
        return refuse(reason);
    }
    let mut frames = Vec::with_capacity(options.frames);
    for sample in order {
        if let Some(frame) = taken[sample].take() {
            frames.extend(std::iter::repeat_n(frame, copies[sample]));
        }
    }
    picker.finish(path, frames, fps, "h264", codec, total).map(Ok)
}

/// The samples that are shown, in the order they are shown.
fn display_order(track: &Track) -> Vec<usize> {
    let time = |i: &usize| track.samples[*i].time;
    let mut order: Vec<usize> = (0..track.samples.len()).collect();
    if let Some((start, end)) = track.shown {
        order.retain(|i| (start..end).contains(&time(i)));
    }
    order.sort_by_key(|i| (time(i), *i));
    order
}

/// A track whose description has been found readable.
struct Stream<'a> {
    track: &'a Track,
    sps: Sps,
    /// Bytes of the length before each NAL unit.
    length_bytes: usize,
    /// Parameter sets in Annex B form.
    parameters: Vec<u8>,
    /// [a, b, c, d] of the display matrix as -1, 0 or 1.
    turn: [i8; 4],
}

impl<'a> Stream<'a> {
    fn new(track: &'a Track) -> Result<Self, String> {
        if !matches!(&track.fourcc, b"avc1" | b"avc3") {
            return Err("not H.264".into());
        }
        let [_, _, _, _, lengths, rest @ ..] = track.config.as_slice() else {
            return Err("no H.264 configuration (`avcC`)".into());
        };
        let turn = track.matrix.map(|v| match v {
            0 => 0i8,
            0x10000 => 1,
            -0x10000 => -1,
            _ => 2,
        });
        let [a, b, c, d] = turn;
        if turn.contains(&2) || a.abs() != d.abs() || b.abs() != c.abs() || a.abs() == b.abs() {
            return Err("a rotation by other than quarter turns".into());
        }
        let mut stream = Stream {
            track,
            sps: first_sps(&track.config).ok_or("no readable parameter set in `avcC`")?,
            length_bytes: (lengths & 3) as usize + 1,
            parameters: Vec::new(),
            turn,
        };
        for nal in parameter_sets(rest) {
            if nal[0] & 31 == SPS {
                checked_sps(nal)?;
            }
            append(&mut stream.parameters, nal)?;
        }
        colour(&stream.sps, track)?;
        Ok(stream)
    }

    /// Decodes up to the last sample with `copies` and gives `keep` the picture of each that has some, in decoding
    /// order.
    fn decode(
        &self,
        file: &mut (impl Read + Seek),
        length: u64,
        copies: &[usize],
        mut keep: impl FnMut(usize, &YuvFrame, &Sps) -> Result<(), String>,
    ) -> Result<(), String> {
        let samples = &self.track.samples;
        let wanted = |i: &usize| copies[*i] > 0;
        let (Some(first), Some(last)) = ((0..samples.len()).find(wanted), (0..samples.len()).rfind(wanted)) else {
            return Err("no pictures".into());
        };
        // An IDR picture makes all before it in decoding order dispensable; a plain sync sample may not.
        let mut start = 0;
        for candidate in (1..=first).rev().filter(|&i| samples[i].sync) {
            if units(&read_sample(file, length, &samples[candidate])?, self.length_bytes)?
                .iter()
                .any(|nal| nal[0] & 31 == IDR)
            {
                start = candidate;
                break;
            }
        }
        let mut decoder = Decoder::new();
        let mut sps = self.sps.clone();
        let mut unit = self.parameters.clone();
        let mut pixels = 0;
        for i in start..=last {
            let data = read_sample(file, length, &samples[i])?;
            for nal in units(&data, self.length_bytes)? {
                if nal[0] & 31 == SPS {
                    sps = checked_sps(nal)?;
                }
                append(&mut unit, nal)?;
            }
            pixels += sps.coded.0 * sps.coded.1;
            if pixels > MAX_DECODED {
                return Err(format!(
                    "more than {MAX_DECODED} pixels before the last frame asked for; cut the clip first"
                ));
            }
            // The decoder promises not to panic; it is young, so a broken promise costs one file, not the process.
            let decoded = catch_unwind(AssertUnwindSafe(|| decoder.decode(&unit)));
            let picture = match decoded {
                Ok(Ok(picture)) => picture,
                Ok(Err(e)) => return Err(format!("picture {i} of the stream: {e}")),
                Err(_) => return Err(format!("picture {i} of the stream: the decoder failed")),
            };
            unit.clear();
            if copies[i] > 0 {
                let picture = picture.ok_or_else(|| format!("picture {i} of the stream is incomplete"))?;
                keep(i, &picture, &sps)?;
            }
        }
        Ok(())
    }

    /// The visible part of `picture` in RGB.
    fn shown(&self, picture: &YuvFrame, sps: &Sps) -> Result<Frame, String> {
        let (left, top, width, height) = sps.crop;
        // The decoder has cut off the right and the bottom, not the left and the top.
        if (picture.width, picture.height) != (left + width, top + height) || !picture.is_valid() {
            return Err(format!("a picture of {}x{}, not as announced", picture.width, picture.height));
        }
        Ok(to_rgb(picture, sps.crop, colour(sps, self.track)?))
    }
}

fn read_sample(file: &mut (impl Read + Seek), length: u64, sample: &Sample) -> Result<Vec<u8>, String> {
    if sample.offset.saturating_add(sample.bytes as u64) > length {
        return Err("the file is cut off: a picture lies beyond its end".into());
    }
    if sample.bytes > MAX_SAMPLE {
        return Err(format!("a coded picture of {} bytes", sample.bytes));
    }
    let mut data = vec![0; sample.bytes as usize];
    file.seek(SeekFrom::Start(sample.offset)).and_then(|_| file.read_exact(&mut data)).map_err(|e| e.to_string())?;
    Ok(data)
}

/// The stream's own colour description, else the container's, else "unspecified, limited".
fn colour(sps: &Sps, track: &Track) -> Result<Colour, String> {
    let (matrix, full) = match (sps.colour, track.colour) {
        (Some((2, full)), Some((matrix, _))) => (matrix, full),
        (Some(own), _) => own,
        (None, other) => other.unwrap_or((2, false)),
    };
    Colour::from_code(matrix, full).ok_or_else(|| format!("colour matrix {matrix}"))
}

/// `frame` as the display matrix [a, b, c, d] shows it: stored (x, y) goes to (a x + c y, b x + d y), moved back into
/// the picture.
fn turned(frame: Frame, [a, b, c, d]: [i8; 4]) -> Frame {
    if [a, b, c, d] == [1, 0, 0, 1] {
        return frame;
    }
    let (w, h) = (frame.width, frame.height);
    let (width, height) = if a == 0 { (h, w) } else { (w, h) };
    let mut pixels = vec![0; frame.pixels.len()];
    // One of each pair of factors is 0; a negative one runs from the far end.
    let along = |x_factor: i8, y_factor: i8, x: usize, y: usize| match (x_factor, y_factor) {
        (1, _) => x,
        (-1, _) => w - 1 - x,
        (_, 1) => y,
        _ => h - 1 - y,
    };
    for (i, rgb) in frame.pixels.chunks_exact(3).enumerate() {
        let (x, y) = (i % w, i / w);
        let to = along(b, d, x, y) * width + along(a, c, x, y);
        pixels[to * 3..to * 3 + 3].copy_from_slice(rgb);
    }
    Frame { width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// B-frames, CABAC, the 8x8 transform, several references and cropping, against ffmpeg's own decoder, bit by bit.
    /// The clip and the sum come from `tests/fixtures/media/make.sh`.
    #[test]
    fn decodes_high_profile_exactly() {
        let clip: &[u8] = include_bytes!("../../tests/fixtures/media/high.mp4");
        let sum = include_str!("../../tests/fixtures/media/high.yuv.sha256");
        let mut file = std::io::Cursor::new(clip);
        let track = read_track(&mut file, clip.len() as u64).unwrap();
        let stream = Stream::new(&track).unwrap();
        let mut pictures = vec![None; track.samples.len()];
        let all = vec![1; track.samples.len()];
        stream
            .decode(&mut file, clip.len() as u64, &all, |i, picture, _| {
                pictures[i] = Some(picture.clone());
                Ok(())
            })
            .unwrap();
        let order = display_order(&track);
        assert_eq!(order.len(), 24);
        assert_ne!(order, (0..24).collect::<Vec<_>>(), "a clip without B-frames tests too little");
        let mut hash = Sha256::new();
        for i in order {
            let picture = pictures[i].take().unwrap();
            assert_eq!((picture.width, picture.height), (100, 60));
            [&picture.y, &picture.u, &picture.v].into_iter().for_each(|plane| hash.update(plane));
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(Some(found.as_str()), sum.split_whitespace().next());
    }

    #[test]
    fn turns_as_the_matrix_says() {
        let pixel = |n: u8| [n, n, n];
        let frame = Frame { width: 2, height: 1, pixels: [pixel(1), pixel(2)].concat() };
        let first = |f: &Frame| [f.width as u8, f.height as u8, f.pixels[0]];
        assert_eq!(first(&turned(frame.clone(), [0, 1, -1, 0])), [1, 2, 1], "90 degrees clockwise");
        assert_eq!(first(&turned(frame.clone(), [-1, 0, 0, -1])), [2, 1, 2], "180 degrees");
        assert_eq!(first(&turned(frame.clone(), [0, -1, 1, 0])), [1, 2, 2], "90 degrees anticlockwise");
        assert_eq!(first(&turned(frame, [-1, 0, 0, 1])), [2, 1, 2], "mirrored");
    }
}
