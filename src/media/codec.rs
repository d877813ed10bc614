//! Names for what a video track is coded with, for messages: codec and profile.

use super::bits::Sps;
use super::demux::Track;
use super::nal::first_sps;

/// As in `H.264 High (avc1)`.
pub(crate) fn codec_name(track: &Track) -> String {
    let fourcc = track.fourcc.escape_ascii();
    let config = |i: usize| track.config.get(i).copied();
    let name = match &track.fourcc {
        b"avc1" | b"avc3" => match first_sps(&track.config) {
            Some(sps) => format!("H.264 {}", h264_kind(&sps)),
            None => "H.264".into(),
        },
        b"hvc1" | b"hev1" | b"dvh1" | b"dvhe" => match config(1).map(|profile| profile & 31) {
            Some(1) => "HEVC Main".into(),
            Some(2) => "HEVC Main 10".into(),
            Some(3) => "HEVC Main Still Picture".into(),
            Some(other) => format!("HEVC profile {other}"),
            None => "HEVC".into(),
        },
        b"vp08" => "VP8".into(),
        b"vp09" => config(4).map_or("VP9".into(), |profile| format!("VP9 profile {profile}")),
        b"av01" => match config(1).map(|byte| byte >> 5) {
            Some(0) => "AV1 Main".into(),
            Some(1) => "AV1 High".into(),
            Some(_) => "AV1 Professional".into(),
            None => "AV1".into(),
        },
        b"mp4v" => mpeg4_name(&track.config),
        b"apch" | b"apcn" | b"apcs" | b"apco" | b"ap4h" | b"ap4x" => "ProRes".into(),
        b"jpeg" | b"mjpa" | b"mjpb" => "Motion JPEG".into(),
        _ => "codec".into(),
    };
    format!("{name} ({fourcc})")
}

fn h264_kind(sps: &Sps) -> String {
    let mut kind = sps.profile_name();
    if sps.bit_depth != 8 {
        kind += &format!(", {} bits", sps.bit_depth);
    }
    match sps.chroma_format {
        0 => kind += ", grey",
        1 => {}
        2 => kind += ", 4:2:2",
        _ => kind += ", 4:4:4",
    }
    if !sps.progressive {
        kind += ", interlaced";
    }
    kind
}

/// By the object type in `esds` (ISO/IEC 14496-1) and the profile in the visual object sequence header.
fn mpeg4_name(esds: &[u8]) -> String {
    match object_type(esds) {
        Some(0x20) => {}
        Some(0x60..=0x65) => return "MPEG-2".into(),
        Some(0x6a) => return "MPEG-1".into(),
        Some(0x6c) => return "Motion JPEG".into(),
        _ => return "MPEG-4".into(),
    }
    let profile = esds.windows(5).find(|w| w.starts_with(&[0, 0, 1, 0xb0])).map(|w| w[4]);
    let profile = match profile {
        Some(1..=9) => " Simple Profile",
        Some(0xf0..=0xf7) => " Advanced Simple Profile",
        _ => "",
    };
    format!("MPEG-4 Visual{profile}")
}

fn object_type(esds: &[u8]) -> Option<u8> {
    /// Past the tag `tag` and its length, of up to four bytes of seven bits.
    fn enter(data: &[u8], tag: u8) -> Option<&[u8]> {
        let rest = data.strip_prefix(&[tag])?;
        let more = rest.iter().take(3).take_while(|byte| *byte & 0x80 != 0).count();
        rest.get(more + 1..)
    }
    let stream = enter(esds.get(4..)?, 3)?;
    enter(stream.get(3..)?, 4)?.first().copied()
}
