//! Autoencoder, text encoder and CLIP against diffusers and transformers, on whole outputs.

mod common;

use common::{Fixture, device, distance, distance_rows};
use customttt::model::clip::{Clip, TextEncoder};
use customttt::model::config::{ClipConfig, TextConfig, VaeConfig};
use customttt::model::vae::Vae;
use customttt::nn::{Params, Recorder, RuleWeights};
use customttt::{Device, Error, Result, Tensor};

const LIMIT: f64 = 1e-5;

/// A model filled by the rule from the names that its constructor asks for.
fn build<M>(device: &Device, f: &Fixture, new: impl Fn(&Params) -> Result<M>) -> Result<M> {
    let recorder = Recorder::new();
    new(&Params::new(&recorder, device, None))?;
    assert_eq!(Some(recorder.names().len() as u64), f.about["parameters"]["tensors"].as_u64(), "parameters");
    new(&Params::new(&RuleWeights::new(&recorder.names(), 1.0), device, None))
}

fn config<C: serde::de::DeserializeOwned>(f: &Fixture) -> C {
    serde_json::from_value(f.about["config"].clone()).expect("the config should be the model's")
}

fn prompts(f: &Fixture) -> Vec<Vec<u32>> {
    let ids = f.get("input_ids");
    ids.data.chunks(ids.shape[1]).map(|row| row.iter().map(|&x| x as u32).collect()).collect()
}

#[test]
fn autoencoder_matches_diffusers_both_ways() -> Result<()> {
    let (device, f) = (device(), Fixture::read("vae"));
    let vae = build(&device, &f, |p| Vae::new(p, &config::<VaeConfig>(&f)))?;
    assert_eq!(vae.downscale(), 8);
    let posterior = vae.encode(&f.rows(&device, "image")?)?;
    for (name, got) in [("mean", &posterior.mean), ("logvar", &posterior.logvar)] {
        let error = distance_rows(got, f.get(name));
        assert!(error <= LIMIT, "{name} off by {error:e}");
    }
    let error = distance_rows(&vae.decode(&f.rows(&device, "latent")?)?, f.get("decoded"));
    assert!(error <= LIMIT, "decoded off by {error:e}");
    Ok(())
}

#[test]
fn posterior_samples_scale_the_noise() -> Result<()> {
    let (device, f) = (device(), Fixture::read("vae"));
    let vae = build(&device, &f, |p| Vae::new(p, &config::<VaeConfig>(&f)))?;
    let posterior = vae.encode(&f.rows(&device, "image")?)?;
    let ones = Tensor::full(&device, posterior.mean.shape(), 1.0);
    let got = posterior.sample(&ones)?.to_vec();
    let (mean, logvar) = (posterior.mean.to_vec(), posterior.logvar.to_vec());
    let want: Vec<f32> = mean.iter().zip(&logvar).map(|(m, v)| m + (0.5 * v).exp()).collect();
    assert!(distance(&got, &want) < 1e-6);
    let still = posterior.sample(&Tensor::zeros(&device, ones.shape()))?;
    assert_eq!(still.to_vec(), mean);
    Ok(())
}

#[test]
fn text_encoder_matches_transformers() -> Result<()> {
    let (device, f) = (device(), Fixture::read("text"));
    let encoder = build(&device, &f, |p| TextEncoder::new(p, &config::<TextConfig>(&f)))?;
    let states = encoder.forward(&prompts(&f))?;
    let error = distance(&states.to_vec(), &f.get("last_hidden_state").data);
    assert!(error <= LIMIT, "off by {error:e}");
    for wrong in [vec![], vec![vec![1; 78]], vec![vec![1; 3], vec![1; 4]], vec![vec![49408; 77]]] {
        assert!(matches!(encoder.forward(&wrong), Err(Error::Shape { .. })), "{} prompts", wrong.len());
    }
    Ok(())
}

#[test]
fn clip_matches_transformers() -> Result<()> {
    let (device, f) = (device(), Fixture::read("clip"));
    let clip = build(&device, &f, |p| Clip::new(p, &config::<ClipConfig>(&f)))?;
    let text = clip.embed_text(&prompts(&f))?;
    let error = distance(&text.to_vec(), &f.get("text_embeds").data);
    assert!(error <= LIMIT, "text off by {error:e}");
    let pictures = clip.embed_pictures(&f.rows(&device, "pixel_values")?)?;
    let error = distance(&pictures.to_vec(), &f.get("image_embeds").data);
    assert!(error <= LIMIT, "pictures off by {error:e}");
    for row in pictures.to_vec().chunks(pictures.shape().last()) {
        assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5, "embeddings have unit length");
    }
    Ok(())
}
