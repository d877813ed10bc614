//! Pictures and clips in and out, on files made here and on the fixtures of `tests/fixtures/media`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use customttt::Error;
use customttt::media::*;

/// A smooth moving clip: no two frames alike, nothing that 4:2:0 cannot hold.
fn smooth(width: usize, height: usize, count: usize) -> Vec<Frame> {
    let level = |phase: f32| (128.0 + 90.0 * phase.sin()) as u8;
    (0..count)
        .map(|t| {
            let t = t as f32 * 0.25;
            let mut pixels = Vec::new();
            for y in 0..height {
                for x in 0..width {
                    let (x, y) = (x as f32 / 24.0, y as f32 / 19.0);
                    pixels.extend([level(x + t), level(y - t), level(x + y + 2.0 * t)]);
                }
            }
            Frame { width, height, pixels }
        })
        .collect()
}

/// A clip of few colours whose frames say their number.
fn numbered(width: usize, height: usize, count: usize) -> Vec<Frame> {
    (0..count)
        .map(|t| {
            let mut frame = Frame::filled(width, height, [t as u8 * 10, 40, 200]);
            frame.pixels[..3].copy_from_slice(&[255, t as u8, 0]);
            frame
        })
        .collect()
}

fn psnr(a: &Frame, b: &Frame) -> f64 {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let squares: f64 = a.pixels.iter().zip(&b.pixels).map(|(&x, &y)| (x as f64 - y as f64).powi(2)).sum();
    10.0 * (255.0f64.powi(2) * a.pixels.len() as f64 / squares.max(1e-9)).log10()
}

fn options(frames: usize, width: usize, height: usize) -> ClipOptions {
    ClipOptions { frames, width, height, ffmpeg: Ffmpeg::Never, ..ClipOptions::default() }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/media").join(name)
}

#[track_caller]
fn input_error(result: Result<impl Sized, Error>) -> String {
    match result {
        Err(e @ Error::Input { .. }) => e.to_string(),
        Err(e) => panic!("not an input error: {e:?}"),
        Ok(_) => panic!("accepted"),
    }
}

/// Whether `ffmpeg` can be run; says so if it cannot, and fails if it must be.
fn have_ffmpeg(test: &str) -> bool {
    let have = Command::new("ffmpeg").arg("-version").output().is_ok_and(|out| out.status.success());
    if !have {
        assert!(std::env::var_os("CUSTOMTTT_REQUIRE_FFMPEG").is_none_or(|v| v != "1"), "{test} needs ffmpeg");
        // Not `eprintln!`, which the test harness swallows when the test passes.
        let note = format!("SKIPPED {test}: no ffmpeg on PATH (CUSTOMTTT_REQUIRE_FFMPEG=1 makes this a failure)\n");
        std::io::stderr().write_all(note.as_bytes()).unwrap();
    }
    have
}

#[track_caller]
fn run_ffmpeg(arguments: &[&str], output: &Path) {
    let out = Command::new("ffmpeg").args(["-v", "error", "-y"]).args(arguments).arg(output).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn values_and_levels_are_inverse() {
    let frame = Frame { width: 16, height: 16, pixels: (0..768).map(|i| (i % 256) as u8).collect() };
    let values = frame.to_values();
    assert_eq!((values[0], values[255]), (-1.0, 1.0));
    assert_eq!(Frame::from_values(16, 16, &values).unwrap(), frame);
    let planes = frame.to_planes();
    assert_eq!(planes[256], values[1], "the second plane begins with the first green");
    assert_eq!(Frame::from_planes(16, 16, &planes).unwrap(), frame);
    let odd = Frame::from_values(1, 1, &[-7.0, f32::NAN, 7.0]).unwrap();
    assert_eq!(odd.pixels, [0, 0, 255]);
    assert!(matches!(Frame::from_values(4, 4, &values), Err(Error::Shape { .. })));
}

#[test]
fn fitting_crops_the_centre_or_shows_all() {
    let mut wide = Frame::filled(64, 16, [10, 20, 30]);
    for y in 0..16 {
        for x in 0..64 {
            if (24..40).contains(&x) {
                wide.pixels[(y * 64 + x) * 3..][..3].copy_from_slice(&[200, 100, 50]);
            }
        }
    }
    let cropped = wide.fit(16, 16, Fit::Crop);
    assert_eq!(cropped, Frame::filled(16, 16, [200, 100, 50]));
    let boxed = wide.fit(64, 64, Fit::Letterbox);
    assert_eq!(&boxed.pixels[..3], [0, 0, 0]);
    assert_eq!(&boxed.pixels[(24 * 64) * 3..][..3], [10, 20, 30]);
    assert_eq!(&boxed.pixels[(40 * 64) * 3..][..3], [0, 0, 0]);
    // A flat picture stays flat whichever way it is scaled; a fine checkerboard becomes grey, not moire.
    assert_eq!(Frame::filled(37, 91, [7, 77, 177]).fit(256, 256, Fit::Crop), Frame::filled(256, 256, [7, 77, 177]));
    let checks = Frame {
        width: 128,
        height: 128,
        pixels: (0..128 * 128).flat_map(|i| [((i + i / 128) % 2 * 255) as u8; 3]).collect(),
    };
    assert!(checks.fit(32, 32, Fit::Crop).pixels.iter().all(|&v| (126..=129).contains(&v)));
}

/// Pillow 12's `Image.resize(size, Image.BILINEAR, box)`, exactly.
#[test]
fn resizing_agrees_with_pillow() {
    let pixels = (0..14 * 8).flat_map(|i| [(i * 2) as u8, (i % 14 * 18) as u8, (i / 14 * 36) as u8]).collect();
    let ramp = Frame { width: 14, height: 8, pixels };
    // resize((7, 4))
    let first = [21, 13, 26, 25, 45, 26, 29, 81, 26, 33, 117, 26, 37, 153, 26, 41, 189, 26, 45, 221, 26];
    assert_eq!(&ramp.fit(7, 4, Fit::Crop).pixels[..21], first);
    // resize((21, 20), box=(2.8, 0, 11.2, 8)), row 7: both ways enlarged, the centre kept
    let eighth = [75, 45, 90, 76, 52, 90, 77, 59, 90, 77, 67, 90, 78, 74, 90, 79, 81, 90, 80, 88, 90];
    assert_eq!(&ramp.fit(21, 20, Fit::Crop).pixels[7 * 63..][..21], eighth);
}

#[test]
fn pictures_come_sorted_upright_and_opaque() {
    let dir = tempfile::tempdir().unwrap();
    let grey16 = image::ImageBuffer::<image::Luma<u16>, _>::from_pixel(20, 30, image::Luma([0x8000u16]));
    grey16.save(dir.path().join("b.png")).unwrap();
    let mut clear = image::RgbaImage::from_pixel(30, 20, image::Rgba([0, 0, 0, 0]));
    clear.put_pixel(0, 0, image::Rgba([255, 0, 0, 255]));
    clear.put_pixel(1, 0, image::Rgba([0, 0, 0, 128]));
    clear.save(dir.path().join("c.PNG")).unwrap();
    image::RgbImage::from_pixel(64, 64, image::Rgb([10, 200, 30])).save(dir.path().join("a.jpeg")).unwrap();
    let lossless = image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([x as u8, y as u8, 9]));
    lossless.save(dir.path().join("d.webp")).unwrap();
    fs::write(dir.path().join("notes.txt"), "not a picture").unwrap();
    fs::write(dir.path().join("._a.jpeg"), "a file manager's").unwrap();

    let pictures = load_pictures(dir.path(), 20, 20, Fit::Crop).unwrap();
    assert_eq!(pictures.len(), 4);
    assert!(pictures[0].pixels.as_chunks::<3>().0.iter().all(|p| p[1] > 190 && p[0] < 20));
    assert!(pictures[1].pixels.iter().all(|&v| v == 128));
    let own = load_picture(dir.path().join("c.PNG"), 30, 20, Fit::Crop).unwrap();
    assert_eq!(&own.pixels[..9], [255, 0, 0, 127, 127, 127, 255, 255, 255]);
    let own = load_picture(dir.path().join("d.webp"), 40, 40, Fit::Crop).unwrap();
    assert_eq!(own.pixels, lossless.into_raw());
}

/// A JPEG of 32x16, left half red, with the given EXIF orientation.
fn oriented(orientation: u8) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(32, 16, |x, _| image::Rgb(if x < 16 { [255, 0, 0] } else { [0, 0, 255] }));
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 95).encode_image(&picture).unwrap();
    let tiff = [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[orientation, 0, 0, 0, 0, 0, 0, 0][..]].concat();
    let payload = [b"Exif\0\0", &tiff[..]].concat();
    let marker = [&[0xff, 0xe1], &(payload.len() as u16 + 2).to_be_bytes()[..], &payload].concat();
    [&jpeg[..2], &marker, &jpeg[2..]].concat()
}

#[test]
fn exif_orientation_turns_the_picture() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("turned.jpg");
    let reddest = |orientation, width: usize, height: usize| {
        fs::write(&path, oriented(orientation)).unwrap();
        let frame = load_picture(&path, width, height, Fit::Crop).unwrap();
        let red = |x: usize, y: usize| frame.pixels[(y * width + x) * 3] > 200;
        [red(4, 4), red(width - 5, 4), red(4, height - 5), red(width - 5, height - 5)]
    };
    assert_eq!(reddest(1, 32, 16), [true, false, true, false]);
    assert_eq!(reddest(3, 32, 16), [false, true, false, true]);
    assert_eq!(reddest(6, 16, 32), [true, true, false, false], "6: the left is up");
    assert_eq!(reddest(8, 16, 32), [false, false, true, true], "8: the left is down");
}

#[test]
fn useless_pictures_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = input_error(load_pictures(dir.path(), 64, 64, Fit::Crop));
    assert!(empty.contains("jpg, jpeg, png, webp") && empty.contains("empty"), "{empty}");
    fs::write(dir.path().join("clip.mp4"), "x").unwrap();
    let other = input_error(load_pictures(dir.path(), 64, 64, Fit::Crop));
    assert!(other.contains("clip.mp4"), "{other}");

    let jpeg = oriented(1);
    fs::write(dir.path().join("broken.jpg"), &jpeg[..jpeg.len() / 3]).unwrap();
    assert!(input_error(load_pictures(dir.path(), 64, 64, Fit::Crop)).contains("broken.jpg"));
    let missing = load_pictures(dir.path().join("nowhere"), 64, 64, Fit::Crop).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }) && missing.to_string().contains("nowhere"));

    let tiny = dir.path().join("tiny.png");
    write_png(&tiny, &Frame::filled(7, 64, [0; 3])).unwrap();
    assert!(input_error(load_picture(&tiny, 64, 64, Fit::Crop)).contains("7x64"));
    // A header that claims 50000x50000 with nothing behind it.
    let mut bomb = fs::read(&tiny).unwrap();
    bomb[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
    let crc = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&crc.to_be_bytes());
    let path = dir.path().join("bomb.png");
    fs::write(&path, &bomb).unwrap();
    assert!(input_error(load_picture(&path, 64, 64, Fit::Crop)).contains("bomb.png"));
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ byte as u32, |c, _| (c >> 1) ^ ((c & 1) * 0xedb8_8320)))
}

#[test]
fn png_apng_and_small_gif_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let clip = numbered(24, 16, 6);
    write_png_frames(dir.path().join("frames"), &clip).unwrap();
    let read = read_clip(dir.path().join("frames"), &options(6, 24, 16)).unwrap();
    assert_eq!((read.frames == clip, read.backend, read.total_frames), (true, "folder", Some(6)));
    assert!(dir.path().join("frames/frame_0005.png").exists());

    let path = dir.path().join("clip.png");
    write_apng(&path, &clip, 8.0).unwrap();
    let read = read_clip(&path, &options(6, 24, 16)).unwrap();
    assert_eq!((read.frames == clip, read.backend), (true, "apng"));
    assert!((read.fps - 8.0).abs() < 1e-6, "{}", read.fps);
    let noisy = smooth(40, 24, 3);
    write_apng(&path, &noisy, 29.97).unwrap();
    assert_eq!(read_clip(&path, &options(3, 40, 24)).unwrap().frames, noisy);

    let path = dir.path().join("clip.gif");
    write_gif(&path, &clip, 8.0).unwrap();
    let read = read_clip(&path, &options(6, 24, 16)).unwrap();
    assert_eq!((read.frames == clip, read.backend), (true, "gif"));
    // Whole 1/100 s: 13, 12, 13, 12, 13, 12.
    assert!((read.fps - 8.0).abs() < 1e-6, "{}", read.fps);
    let head = fs::read(&path).unwrap();
    assert!(head.windows(11).any(|w| w == b"NETSCAPE2.0"), "it must loop");
}

#[test]
fn rich_gif_is_close() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clip.gif");
    let clip = smooth(96, 64, 5);
    write_gif(&path, &clip, 10.0).unwrap();
    let read = read_clip(&path, &options(5, 96, 64)).unwrap();
    for (a, b) in clip.iter().zip(&read.frames) {
        assert!(psnr(a, b) > 26.0, "{}", psnr(a, b));
        // Dithering keeps the mean where banding would shift it.
        let mean = |f: &Frame| f.pixels.iter().map(|&v| v as f64).sum::<f64>() / f.pixels.len() as f64;
        assert!((mean(a) - mean(b)).abs() < 0.5);
    }
}

#[test]
fn contact_sheet_holds_every_frame() {
    let clip = numbered(16, 12, 5);
    let sheet = contact_sheet(&clip).unwrap();
    assert_eq!((sheet.width, sheet.height), (3 * 18 - 2, 2 * 14 - 2));
    for (i, frame) in clip.iter().enumerate() {
        let (x, y) = (i % 3 * 18, i / 3 * 14);
        assert_eq!(&sheet.pixels[(y * sheet.width + x) * 3..][..3], &frame.pixels[..3]);
    }
    assert_eq!(sheet.pixels[sheet.pixels.len() - 3..], [255; 3], "an empty place is white");
    assert!(matches!(contact_sheet(&[]), Err(Error::Shape { .. })));
    let uneven = [Frame::filled(8, 8, [0; 3]), Frame::filled(8, 9, [0; 3])];
    assert!(matches!(contact_sheet(&uneven), Err(Error::Shape { .. })));
}

#[test]
fn mp4_comes_back_nearly_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clip.mp4");
    for (width, height, fps, count) in [(128, 128, 8.0, 16), (72, 40, 30000.0 / 1001.0, 60), (33, 17, 24.0, 3)] {
        let clip = smooth(width, height, count);
        write_mp4(&path, &clip, fps).unwrap();
        let (w, h) = (width.next_multiple_of(2), height.next_multiple_of(2));
        let read = read_clip(&path, &options(count, w, h)).unwrap();
        assert_eq!((read.backend, read.total_frames), ("h264", Some(count)));
        assert_eq!(read.codec, "H.264 Constrained Baseline (avc1)");
        assert!((read.fps - fps).abs() < 1e-3, "{}", read.fps);
        for (a, b) in clip.iter().zip(&read.frames) {
            let mut part = Frame::filled(width, height, [0; 3]);
            for y in 0..height {
                part.pixels[y * width * 3..][..width * 3].copy_from_slice(&b.pixels[y * w * 3..][..width * 3]);
            }
            assert!(psnr(a, &part) >= 38.0, "{width}x{height}: {} dB", psnr(a, &part));
        }
    }
    let bytes = fs::read(&path).unwrap();
    let at = |name: &[u8]| bytes.windows(4).position(|w| w == name).unwrap();
    assert!(at(b"moov") < at(b"mdat"), "the header comes first");
    assert!(matches!(write_mp4(&path, &[], 8.0), Err(Error::Shape { .. })));
    assert!(matches!(write_mp4(&path, &smooth(16, 16, 1), 0.0), Err(Error::Config { .. })));
    assert!(matches!(write_mp4(dir.path().join("no/clip.mp4"), &smooth(16, 16, 1), 8.0), Err(Error::Io { .. })));
}

#[test]
fn high_profile_with_b_frames_is_read() {
    let clip = read_clip(fixture("high.mp4"), &options(24, 100, 60)).unwrap();
    assert_eq!((clip.backend, clip.total_frames, clip.codec.as_str()), ("h264", Some(24), "H.264 High (avc1)"));
    assert!((clip.fps - 12.0).abs() < 1e-6, "{}", clip.fps);
    let expected = load_picture(fixture("high_frame5.png"), 100, 60, Fit::Crop).unwrap();
    let found: Vec<f64> = clip.frames.iter().map(|frame| psnr(frame, &expected)).collect();
    assert!(found[5] > 38.0, "{found:?}");
    assert!(found.iter().enumerate().all(|(i, &p)| i == 5 || p < found[5] - 6.0), "{found:?}");
    // The second group of pictures begins at 12: decoding from there gives the same.
    let late = read_clip(fixture("high.mp4"), &ClipOptions { start: 13, step: 4, ..options(3, 100, 60) }).unwrap();
    assert!(late.frames.iter().zip([13, 17, 21]).all(|(frame, i)| *frame == clip.frames[i]));
}

#[test]
fn frames_are_chosen_by_start_step_and_rate() {
    let dir = tempfile::tempdir().unwrap();
    let clip = numbered(16, 16, 12);
    let gif = dir.path().join("clip.gif");
    write_gif(&gif, &clip, 10.0).unwrap();
    let mp4 = dir.path().join("clip.mp4");
    write_mp4(&mp4, &clip, 10.0).unwrap();
    let numbers = |path: &Path, options: &ClipOptions| -> Vec<usize> {
        let frames = read_clip(path, options).unwrap().frames;
        let nearest = |frame: &Frame| (0..12).max_by(|&a, &b| psnr(frame, &clip[a]).total_cmp(&psnr(frame, &clip[b])));
        frames.iter().map(|frame| nearest(frame).unwrap()).collect()
    };
    let base = options(4, 16, 16);
    for path in [&gif, &mp4] {
        assert_eq!(numbers(path, &ClipOptions { start: 2, step: 3, ..base.clone() }), [2, 5, 8, 11]);
        assert_eq!(numbers(path, &ClipOptions { fps: Some(5.0), ..base.clone() }), [0, 2, 4, 6]);
        assert_eq!(numbers(path, &ClipOptions { fps: Some(20.0), start: 1, ..base.clone() }), [0, 1, 1, 2]);

        let short = input_error(read_clip(path, &ClipOptions { start: 3, step: 3, ..base.clone() }));
        assert!(short.contains("12 frames") && short.contains("need 13"), "{short}");
        assert!(short.contains("--frame-step 2") && short.contains("--frame-start 2"), "{short}");
        assert!(short.contains("--frames 3"), "{short}");
        let beyond = input_error(read_clip(path, &ClipOptions { start: 40, ..base.clone() }));
        assert!(beyond.contains("--frame-start 8"), "{beyond}");
    }
    for bad in [ClipOptions { frames: 0, ..base.clone() }, ClipOptions { step: 0, ..base.clone() }] {
        assert!(matches!(read_clip(&gif, &bad), Err(Error::Config { .. })));
    }
    let rate = ClipOptions { fps: Some(f64::NAN), ..base };
    assert!(matches!(read_clip(&gif, &rate), Err(Error::Config { .. })));
}

#[test]
fn unpadded_frame_numbers_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let clip = numbered(8, 8, 12);
    for (i, frame) in clip.iter().enumerate() {
        write_png(dir.path().join(format!("f{i}.png")), frame).unwrap();
    }
    assert_eq!(read_clip(dir.path(), &options(12, 8, 8)).unwrap().frames, clip);
}

#[test]
fn stills_and_strangers_are_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let png = dir.path().join("still.png");
    write_png(&png, &smooth(16, 16, 1)[0]).unwrap();
    assert!(input_error(read_clip(&png, &options(1, 16, 16))).contains("still"));
    let path = dir.path().join("it's.mkv");
    fs::write(&path, b"\x1a\x45\xdf\xa3 a matroska file").unwrap();
    let error = input_error(read_clip(&path, &options(1, 16, 16)));
    assert!(error.contains("ffmpeg -i") && error.contains(r"it'\''s.mkv'") && error.contains("-h264.mp4"), "{error}");
    let nowhere = ClipOptions { ffmpeg: Ffmpeg::At("/nowhere/ffmpeg".into()), ..options(1, 16, 16) };
    assert!(matches!(read_clip(&path, &nowhere), Err(Error::Config { .. })));
}

/// Calls `read_clip` on variants of a file: any outcome but a panic, and anything taken has the size asked for.
fn survives(path: &Path, variants: impl Iterator<Item = Vec<u8>>) -> [usize; 2] {
    let options = options(3, 32, 24);
    let mut outcomes = [0; 2];
    for variant in variants {
        fs::write(path, variant).unwrap();
        match read_clip(path, &options) {
            Ok(clip) => {
                assert!(clip.frames.len() == 3 && clip.frames.iter().all(|f| f.pixels.len() == 32 * 24 * 3));
                outcomes[0] += 1;
            }
            Err(Error::Input { .. }) => outcomes[1] += 1,
            Err(e) => panic!("{e}"),
        }
    }
    outcomes
}

#[test]
fn hostile_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clip.bin");
    let clip = smooth(48, 32, 4);
    let made = |name: &str, write: &dyn Fn(&Path)| {
        let path = dir.path().join(name);
        write(&path);
        fs::read(path).unwrap()
    };
    let files = [
        made("a.mp4", &|p| write_mp4(p, &clip, 8.0).unwrap()),
        made("a.gif", &|p| write_gif(p, &clip, 8.0).unwrap()),
        made("a.png", &|p| write_apng(p, &clip, 8.0).unwrap()),
        fs::read(fixture("high.mp4")).unwrap(),
    ];
    for file in &files {
        let cuts = (0..file.len()).step_by(1 + file.len() / 150);
        let [_, refused] = survives(&path, cuts.map(|n| file[..n].to_vec()));
        assert!(refused > 50, "{refused}");
        // One bit in each of the first bytes (headers), then ever fewer.
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        let flips = (0..600).map(|i| {
            let mut bad = file.clone();
            let reach = if i < 400 { file.len().min(1200) } else { file.len() };
            for _ in 0..1 + i % 3 {
                bad[next(reach)] ^= 1 << next(8);
            }
            bad
        });
        survives(&path, flips);
    }
}

#[test]
fn impossible_counts_do_not_allocate() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clip.mp4");
    write_mp4(&path, &smooth(32, 32, 4), 8.0).unwrap();
    let good = fs::read(&path).unwrap();
    for name in [b"stsz", b"stts", b"stsc", b"stco", b"stss", b"avcC", b"mdhd", b"moov", b"trak", b"mdat", b"tkhd"] {
        let at = good.windows(4).position(|w| w == name).unwrap();
        for (offset, value) in [(8, u32::MAX), (12, u32::MAX), (4, u32::MAX), (8, 0x00ff_ffff), (12, 1), (16, 0)] {
            let mut bad = good.clone();
            bad[at + offset..at + offset + 4].copy_from_slice(&value.to_be_bytes());
            survives(&path, [bad].into_iter());
        }
        for size in [0u32, 1, 7, 8, 9, 0x7fff_ffff, u32::MAX] {
            let mut bad = good.clone();
            bad[at - 4..at].copy_from_slice(&size.to_be_bytes());
            survives(&path, [bad].into_iter());
        }
    }
    // The one that makes `re_mp4` ask for hundreds of gigabytes: 2^32 - 1 samples of a common size.
    let at = good.windows(4).position(|w| w == b"stsz").unwrap();
    let mut bad = good.clone();
    bad[at + 8..at + 16].copy_from_slice(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
    fs::write(&path, bad).unwrap();
    let error = input_error(read_clip(&path, &options(1, 32, 32)));
    assert!(error.contains("4294967295 samples"), "{error}");
}

#[test]
fn ffmpeg_plays_what_is_written() {
    if !have_ffmpeg("ffmpeg_plays_what_is_written") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let clip = smooth(128, 96, 10);
    let (mp4, gif) = (dir.path().join("clip.mp4"), dir.path().join("clip.gif"));
    write_mp4(&mp4, &clip, 8.0).unwrap();
    write_gif(&gif, &clip, 8.0).unwrap();
    for (path, least) in [(&mp4, 38.0), (&gif, 26.0)] {
        let frames = dir.path().join("out");
        fs::create_dir_all(&frames).unwrap();
        run_ffmpeg(&["-xerror", "-i", path.to_str().unwrap()], &frames.join("%04d.png"));
        let read = read_clip(&frames, &options(10, 128, 96)).unwrap();
        assert_eq!(read.total_frames, Some(10));
        for (a, b) in clip.iter().zip(&read.frames) {
            assert!(psnr(a, b) >= least, "{} dB", psnr(a, b));
        }
    }
    let probe = ["-v", "error", "-show_streams", mp4.to_str().unwrap()];
    let probe = Command::new("ffprobe").args(probe).output().unwrap();
    let about = String::from_utf8_lossy(&probe.stdout);
    for fact in [
        "profile=Constrained Baseline",
        "pix_fmt=yuv420p",
        "color_range=tv",
        "color_space=smpte170m",
        "color_primaries=bt709",
        "r_frame_rate=8/1",
        "nb_frames=10",
        "has_b_frames=0",
        "duration=1.25",
    ] {
        assert!(about.contains(fact), "{fact} is not in {about}");
    }
}

/// A copy whose display matrix is 1/65536 off: the built-in reader refuses that, ffmpeg takes the nearest quarter turn.
fn nearly_turned(mp4: &Path) -> PathBuf {
    let mut bytes = fs::read(mp4).unwrap();
    let matrix = bytes.windows(4).position(|w| w == b"tkhd").unwrap() + 44;
    let cell = if bytes[matrix..matrix + 4] == [0; 4] { matrix + 4 } else { matrix };
    bytes[cell + 3] ^= 1;
    let copy = mp4.with_extension("turned.mp4");
    fs::write(&copy, bytes).unwrap();
    copy
}

#[test]
fn both_readers_take_the_same_frames() {
    if !have_ffmpeg("both_readers_take_the_same_frames") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("high.mp4");
    let source = source.to_str().unwrap();
    // Rotated by metadata only; variable rate; full range; fragmented.
    let cases: [(&str, &[&str]); 5] = [
        ("plain", &["-c", "copy"]),
        ("rotated", &["-c", "copy", "-metadata:s:v", "rotate=90"]),
        ("variable", &["-vf", "select='not(mod(n,3))+lt(n,6)'", "-vsync", "vfr", "-c:v", "libx264"]),
        ("full", &["-vf", "scale=out_range=full", "-color_range", "pc", "-c:v", "libx264", "-crf", "10"]),
        ("fragmented", &["-c", "copy", "-movflags", "+frag_keyframe+empty_moov+default_base_moof"]),
    ];
    for (name, arguments) in cases {
        let mp4 = dir.path().join(format!("{name}.mp4"));
        run_ffmpeg(&[&["-i", source], arguments].concat(), &mp4);
        let (width, height) = if name == "rotated" { (60, 100) } else { (100, 60) };
        for fps in [None, Some(9.0)] {
            let ours = ClipOptions { fps, step: 2, start: 1, ..options(5, width, height) };
            let theirs = ClipOptions { ffmpeg: Ffmpeg::OnPath, ..ours.clone() };
            let built_in = read_clip(&mp4, &ours).unwrap();
            assert_eq!(built_in.backend, "h264");
            let outside = read_clip(nearly_turned(&mp4), &theirs);
            let outside = outside.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(outside.backend, "ffmpeg");
            for (i, (a, b)) in built_in.frames.iter().zip(&outside.frames).enumerate() {
                assert!(psnr(a, b) > 40.0, "{name} at {fps:?}, frame {i}: {} dB", psnr(a, b));
            }
        }
    }
}

#[test]
fn ffmpeg_reads_the_rest() {
    if !have_ffmpeg("ffmpeg_reads_the_rest") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("high.mp4");
    let source = source.to_str().unwrap();
    let cases: [(&str, &[&str], &str); 4] = [
        ("mpeg4.mp4", &["-c:v", "mpeg4", "-q:v", "2"], "MPEG-4 Visual Simple Profile (mp4v)"),
        ("ten.mp4", &["-c:v", "libx264", "-pix_fmt", "yuv420p10le"], "H.264 High 10, 10 bits (avc1)"),
        ("fields.mp4", &["-c:v", "libx264", "-flags", "+ildct+ilme"], "H.264 High, interlaced (avc1)"),
        ("clip.mkv", &["-c", "copy"], "unknown container"),
    ];
    for (name, arguments, codec) in cases {
        let path = dir.path().join(name);
        run_ffmpeg(&[&["-i", source], arguments].concat(), &path);
        let alone = input_error(read_clip(&path, &options(8, 100, 60)));
        assert!(alone.contains(codec) && alone.contains("ffmpeg -i '"), "{alone}");
        let helped = ClipOptions { ffmpeg: Ffmpeg::OnPath, start: 3, step: 2, ..options(8, 100, 60) };
        let clip = read_clip(&path, &helped).unwrap();
        let plain = if name == "mpeg4.mp4" { "mpeg4 (Simple Profile)" } else { "h264 (High" };
        assert!(clip.backend == "ffmpeg" && clip.codec.starts_with(plain), "{}", clip.codec);
        assert!((clip.fps - 12.0).abs() < 0.01, "{name}: {}", clip.fps);
        let expected = load_picture(fixture("high_frame5.png"), 100, 60, Fit::Crop).unwrap();
        assert!(psnr(&clip.frames[1], &expected) > 24.0, "{name}: {} dB", psnr(&clip.frames[1], &expected));
        let short = ClipOptions { frames: 30, ..helped };
        let error = input_error(read_clip(&path, &short));
        assert!(error.contains("24 frames") && error.contains("need 62"), "{error}");
    }
    // A playlist must not reach another file.
    let list = dir.path().join("list.txt");
    fs::write(&list, format!("ffconcat version 1.0\nfile '{source}'\n")).unwrap();
    let error = input_error(read_clip(&list, &ClipOptions { ffmpeg: Ffmpeg::OnPath, ..options(1, 100, 60) }));
    assert!(error.contains("cannot read it either"), "{error}");
}
