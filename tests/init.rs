//! Models with random weights: the same for a seed, and complete.

use std::path::Path;

use customttt::data::init::{Folders, Parameters, Recipe, write_models};
use customttt::data::{Base, Motion, Tokenizer, folder};
use customttt::model::clip::{Clip, TextEncoder};
use customttt::model::unet::UNet;
use customttt::model::vae::Vae;
use customttt::{DType, Device};

fn write(out: &Path, seed: u64, dtype: DType, threads: usize) -> Folders {
    let recipe = Recipe::named("tiny").unwrap();
    let parameters = Parameters::of(&recipe).unwrap();
    let device = Device::cpu(Some(threads)).unwrap();
    device.run(|| write_models(out, &recipe, &parameters, seed, dtype)).unwrap()
}

/// Every file below a folder with its content, by relative path.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push((path.strip_prefix(dir).unwrap().display().to_string(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn models_find_everything_in_the_folders_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let made = write(dir.path(), 7, DType::F16, 2);
    let device = Device::cpu(Some(2)).unwrap();
    let base = Base::open(&made.base).unwrap();

    let unet = base.unet().unwrap();
    let motion = Motion::open(&made.motion).unwrap();
    assert_eq!((motion.note.as_ref(), motion.config.motion_max_seq_length), (None, 32));
    motion.config.fits(&unet.config, &made.motion).unwrap();
    let params = motion.weights.params(&device, None);
    unet.weights.load(&device, None, |p| UNet::new(p, &unet.config, Some((&params, &motion.config)))).unwrap();
    motion.weights.finish().unwrap();

    let vae = base.vae().unwrap();
    assert_eq!(vae.config.scaling_factor, 0.18215);
    vae.weights.load(&device, None, |p| Vae::new(p, &vae.config)).unwrap();
    let text = base.text_encoder().unwrap();
    text.weights.load(&device, None, |p| TextEncoder::new(p, &text.config)).unwrap();
    let clip = folder::open_clip(&made.clip).unwrap();
    clip.weights.load(&device, None, |p| Clip::new(p, &clip.config)).unwrap();

    assert_eq!(base.scheduler_note().unwrap(), None);
    assert_eq!(base.tokenizer().unwrap().length(), Tokenizer::open(&made.clip).unwrap().length());
}

#[test]
fn weights_depend_on_the_seed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let folders = ["a", "b", "c"].map(|name| dir.path().join(name));
    for (path, (seed, threads)) in folders.iter().zip([(7, 1), (7, 3), (8, 1)]) {
        write(path, seed, DType::F32, threads);
    }
    let [a, b, c] = folders.map(|path| contents(&path));
    assert!(a == b, "the number of threads must not matter");
    let differ: Vec<_> = a.iter().zip(&c).filter(|(a, c)| a != c).map(|(a, _)| a.0.as_str()).collect();
    assert_eq!(differ.len(), 5, "{differ:?}");
    assert!(differ.iter().all(|name| name.ends_with(".safetensors")), "{differ:?}");
}

#[test]
fn half_precision_holds_the_same_numbers_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let unets = [DType::F32, DType::F16].map(|dtype| {
        let made = write(&dir.path().join(dtype.to_string()), 7, dtype, 2);
        Base::open(made.base).unwrap().unet().unwrap().weights
    });
    let name = "down_blocks.1.resnets.0.conv1.weight";
    let numbers = unets.map(|weights| {
        let entry = weights.entry(name).unwrap();
        weights.files()[0].numbers(entry).unwrap().to_f32().to_vec()
    });
    let [wide, narrow] = numbers;
    for (w, n) in wide.iter().zip(&narrow) {
        assert_eq!(half::f16::from_f32(*w).to_f32(), *n);
    }
    let (count, fan_in) = (wide.len() as f64, 32.0 * 9.0);
    let square = wide.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / count;
    assert!((square * fan_in - 1.0).abs() < 0.05, "variance {square}");
}
