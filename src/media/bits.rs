//! The sequence parameter set of an H.264 stream (ITU-T H.264, 7.3.2.1.1 and annex E): what kind of video it is, and
//! the colour description that our own encoder leaves out.

/// What a sequence parameter set says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sps {
    pub profile: u8,
    pub constraints: u8,
    pub chroma_format: u32,
    pub bit_depth: u32,
    /// Coded size in pixels, a multiple of 16.
    pub coded: (usize, usize),
    /// The part to show, in pixels: left, top, width, height.
    pub crop: (usize, usize, usize, usize),
    pub progressive: bool,
    pub references: u32,
    /// (matrix_coefficients, full range) of ITU-T H.273; 2 is "unspecified".
    pub colour: Option<(u8, bool)>,
    /// Position, in bits of the payload, of `vui_parameters_present_flag`.
    vui_at: usize,
}

impl Sps {
    /// Reads a NAL unit of type 7, its header byte included.
    pub fn read(nal: &[u8]) -> Option<Sps> {
        let payload = without_escapes(nal.get(1..)?);
        let mut bits = Bits { data: &payload, at: 0 };
        let profile = bits.take(8)? as u8;
        let constraints = bits.take(8)? as u8;
        bits.take(8)?; // level
        bits.ue()?; // id
        let (mut chroma_format, mut bit_depth) = (1, 8);
        if [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135].contains(&profile) {
            chroma_format = bits.ue()?;
            if chroma_format == 3 {
                bits.take(1)?;
            }
            bit_depth = bits.ue()?.max(bits.ue()?).checked_add(8)?;
            bits.take(1)?;
            if bits.take(1)? == 1 {
                for i in 0..if chroma_format == 3 { 12 } else { 8 } {
                    skip_scaling_list(&mut bits, if i < 6 { 16 } else { 64 })?;
                }
            }
        }
        bits.ue()?; // log2_max_frame_num_minus4
        match bits.ue()? {
            0 => {
                bits.ue()?;
            }
            1 => {
                bits.take(1)?;
                bits.ue()?;
                bits.ue()?;
                for _ in 0..bits.ue()?.min(255) {
                    bits.ue()?;
                }
            }
            _ => {}
        }
        let references = bits.ue()?;
        bits.take(1)?;
        let width = bits.ue()?.checked_add(1)?.checked_mul(16)? as usize;
        let units = bits.ue()?.checked_add(1)?.checked_mul(16)? as usize;
        let frames_only = bits.take(1)? == 1;
        let height = if frames_only { units } else { units * 2 };
        let adaptive_fields = !frames_only && bits.take(1)? == 1;
        bits.take(1)?; // direct_8x8_inference_flag
        let mut crop = [0; 4]; // left, right, top, bottom
        if bits.take(1)? == 1 {
            for side in &mut crop {
                *side = bits.ue()? as usize;
            }
        }
        let unit = if chroma_format == 1 || chroma_format == 2 { 2 } else { 1 };
        let row_unit = if chroma_format == 1 { 2 } else { 1 } * if frames_only { 1 } else { 2 };
        let [left, right] = [crop[0] * unit, crop[1] * unit];
        let [top, bottom] = [crop[2] * row_unit, crop[3] * row_unit];
        let shown = (width.checked_sub(left + right)?, height.checked_sub(top + bottom)?);
        let vui_at = bits.at;
        let colour = if bits.take(1)? == 1 { read_colour(&mut bits) } else { None };
        Some(Sps {
            profile,
            constraints,
            chroma_format,
            bit_depth,
            coded: (width, height),
            crop: (left, top, shown.0, shown.1),
            // Field coding may be permitted and not used; the decoder finds out slice by slice.
            progressive: !adaptive_fields,
            references,
            colour,
            vui_at,
        })
    }

    /// The profile's name.
    pub fn profile_name(&self) -> String {
        let set1 = self.constraints & 0x40 != 0;
        let name = match self.profile {
            66 if set1 => "Constrained Baseline",
            66 => "Baseline",
            77 => "Main",
            88 => "Extended",
            100 => "High",
            110 => "High 10",
            122 => "High 4:2:2",
            244 => "High 4:4:4 Predictive",
            44 => "CAVLC 4:4:4 Intra",
            other => return format!("profile {other}"),
        };
        name.into()
    }
}

/// `nal` (type 7, without VUI, as our encoder writes it) with a description of its colours, its constant rate of
/// `rate.0` / `rate.1` frames per second, and the promise that frames come out in the order they are stored, so that
/// players need not buffer any.
pub(crate) fn with_description(nal: &[u8], colour: [u8; 3], rate: (u32, u32)) -> Option<Vec<u8>> {
    let sps = Sps::read(nal)?;
    let payload = without_escapes(&nal[1..]);
    let mut bits = Bits { data: &payload, at: 0 };
    let mut out = BitsOut::default();
    for _ in 0..sps.vui_at {
        out.put(bits.take(1)?, 1);
    }
    if bits.take(1)? == 1 {
        return None;
    }
    out.put(1, 1); // vui_parameters_present_flag
    out.put(0b00, 2); // no aspect ratio, no overscan
    out.put(1, 1); // video_signal_type_present_flag
    out.put(5, 3); // video_format: unspecified
    out.put(0, 1); // limited range
    out.put(1, 1); // colour_description_present_flag
    for code in colour {
        out.put(code as u32, 8);
    }
    out.put(0, 1); // chroma location: the default, left
    out.put(1, 1); // timing_info_present_flag
    out.put(rate.1, 32);
    out.put(rate.0.checked_mul(2)?, 32); // in fields
    out.put(1, 1); // fixed_frame_rate_flag
    out.put(0b000, 3); // no HRD parameters, no picture structure
    out.put(1, 1); // bitstream_restriction_flag
    out.put(1, 1); // motion_vectors_over_pic_boundaries_flag
    for value in [2, 1, 15, 15, 0, sps.references] {
        // Bytes and bits a picture, vector lengths: the defaults; then frames reordered and buffered.
        out.ue(value);
    }
    out.put(1, 1); // stop bit
    let mut escaped = vec![nal[0]];
    let mut zeros = 0;
    for byte in out.bytes {
        if zeros >= 2 && byte <= 3 {
            escaped.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        escaped.push(byte);
    }
    Some(escaped)
}

/// Range and matrix from the VUI; `None` where it ends early or does not say.
fn read_colour(bits: &mut Bits) -> Option<(u8, bool)> {
    if bits.take(1)? == 1 && bits.take(8)? == 255 {
        bits.take(32)?; // aspect ratio
    }
    if bits.take(1)? == 1 {
        bits.take(1)?; // overscan
    }
    if bits.take(1)? == 0 {
        return None;
    }
    bits.take(3)?;
    let full = bits.take(1)? == 1;
    let matrix = if bits.take(1)? == 1 { (bits.take(24)? & 0xff) as u8 } else { 2 };
    Some((matrix, full))
}

fn skip_scaling_list(bits: &mut Bits, size: usize) -> Option<()> {
    if bits.take(1)? == 0 {
        return Some(());
    }
    let (mut last, mut next) = (8i64, 8i64);
    for _ in 0..size {
        if next != 0 {
            let code = bits.ue()? as i64;
            let delta = if code % 2 == 1 { (code + 1) / 2 } else { -code / 2 };
            next = (last + delta).rem_euclid(256);
        }
        last = if next == 0 { last } else { next };
    }
    Some(())
}

/// A NAL unit's payload: 00 00 03 stands for 00 00.
fn without_escapes(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut zeros = 0;
    for &byte in data {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next `n` bits, at most 32.
    fn take(&mut self, n: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..n {
            let bit = self.data.get(self.at / 8)? >> (7 - self.at % 8) & 1;
            value = value << 1 | bit as u32;
            self.at += 1;
        }
        Some(value)
    }

    /// An Exp-Golomb code below 2^31.
    fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros > 30 {
                return None;
            }
        }
        Some((1 << zeros) - 1 + self.take(zeros)?)
    }
}

#[derive(Default)]
struct BitsOut {
    bytes: Vec<u8>,
    used: usize,
}

impl BitsOut {
    fn put(&mut self, value: u32, n: usize) {
        for i in (0..n).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let bit = (value >> i & 1) as u8;
            *self.bytes.last_mut().expect("just pushed") |= bit << (7 - self.used % 8);
            self.used += 1;
        }
    }

    fn ue(&mut self, value: u32) {
        let n = 32 - (value + 1).leading_zeros() as usize;
        self.put(0, n - 1);
        self.put(value + 1, n);
    }
}
