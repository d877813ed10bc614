//! CLIP: the text tower that conditions the UNet, and the pair of towers that metrics compare with.

use super::config::{self, ClipConfig, TextConfig, VisionConfig};
use crate::nn::layer::{LayerNorm, Linear};
use crate::nn::params::Params;
use crate::nn::pass::{Changes, Pass};
use crate::ops::activation::{self, Activation};
use crate::ops::attention::{self, Mask};
use crate::ops::conv2d::{self, Conv};
use crate::ops::{add, embedding, l2_normalize};
use crate::{Error, Result, Tape, Tensor, Var, Weight};

/// CLIP's text tower up to its last hidden states.
#[derive(Clone, Debug)]
pub struct TextEncoder {
    config: TextConfig,
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
}

impl TextEncoder {
    /// The tower whose parameters are under `text_model` of `params`.
    ///
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, config: &TextConfig) -> Result<Self> {
        let params = params.at("text_model");
        let embeddings = params.at("embeddings");
        let width = config.hidden_size;
        let dims = LayerDims {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        Ok(TextEncoder {
            config: config.clone(),
            token_embedding: embeddings.tensor("token_embedding.weight", [config.vocab_size, width])?,
            position_embedding: embeddings
                .tensor("position_embedding.weight", [config.max_position_embeddings, width])?,
            layers: layers(&params.at("encoder"), config.num_hidden_layers, dims)?,
            final_layer_norm: LayerNorm::new(&params.at("final_layer_norm"), width, config.layer_norm_eps)?,
        })
    }

    /// Sizes the tower was built with.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// Last hidden states (B, L, D) of B prompts of L token ids each.
    ///
    /// # Errors
    /// [`Error::Shape`] for prompts of different lengths, longer than the tower knows positions, or with ids
    /// beyond the vocabulary.
    pub fn forward(&self, prompts: &[Vec<u32>]) -> Result<Tensor> {
        let length = prompts.first().map_or(0, Vec::len);
        let fail = |detail: String| Err(Error::shape("text_encoder", detail));
        if length == 0 || length > self.config.max_position_embeddings || prompts.iter().any(|p| p.len() != length) {
            return fail(format!("prompts should all have 1 to {} tokens", self.config.max_position_embeddings));
        }
        if let Some(id) = prompts.iter().flatten().find(|&&id| id as usize >= self.config.vocab_size) {
            return fail(format!("token id {id} in a vocabulary of {}", self.config.vocab_size));
        }
        let ids: Vec<u32> = prompts.concat();
        let places: Vec<u32> = prompts.iter().flat_map(|_| 0..length as u32).collect();
        let shape = [prompts.len(), length, self.config.hidden_size];
        let words = Var::constant(embedding::forward(&self.token_embedding, &ids)?);
        let places = Var::constant(embedding::forward(&self.position_embedding, &places)?);
        let (mut tape, changes) = (Tape::off(), Changes::none());
        let mut h = add::apply(&mut tape, &words, &places)?.reshape(shape)?; // (B*L, D) -> (B, L, D)
        for layer in &self.layers {
            h = layer.forward(&mut Pass { tape: &mut tape, changes: &changes }, &h, Mask::Causal)?;
        }
        Ok(self.final_layer_norm.forward(&mut tape, &h, None)?.tensor().clone())
    }
}

/// CLIPModel: both towers with their projections into one space.
#[derive(Clone, Debug)]
pub struct Clip {
    text: TextEncoder,
    text_projection: Linear,
    vision: VisionEncoder,
    visual_projection: Linear,
}

impl Clip {
    /// # Errors
    /// Those of the source.
    pub fn new(params: &Params, config: &ClipConfig) -> Result<Self> {
        let (text, vision) = (&config.text_config, &config.vision_config);
        params.tensor("logit_scale", [])?; // of the contrastive loss only
        let project = |name, width| Linear::new(&params.at(name), config.projection_dim, width, false);
        Ok(Clip {
            text: TextEncoder::new(params, text)?,
            text_projection: project("text_projection", text.hidden_size)?,
            vision: VisionEncoder::new(&params.at("vision_model"), vision)?,
            visual_projection: project("visual_projection", vision.hidden_size)?,
        })
    }

    /// Unit vectors (B, P) of B prompts, read at their end token.
    ///
    /// # Errors
    /// Those of the text tower.
    pub fn embed_text(&self, prompts: &[Vec<u32>]) -> Result<Tensor> {
        let states = self.text.forward(prompts)?; // (B, L, D)
        let (length, width) = (states.shape()[1], states.shape()[2]);
        let ends: Vec<u32> = prompts.iter().enumerate().map(|(b, p)| (b * length + self.end(p)) as u32).collect();
        let pooled = embedding::forward(&states.reshape([prompts.len() * length, width])?, &ends)?;
        project(&self.text_projection, pooled)
    }

    /// Unit vectors (B, P) of B pictures (B, s, s, 3), normalised with CLIP's mean and deviation.
    ///
    /// # Errors
    /// [`Error::Shape`] for pictures of another size.
    pub fn embed_pictures(&self, pictures: &Tensor) -> Result<Tensor> {
        project(&self.visual_projection, self.vision.forward(pictures)?)
    }

    /// Where a prompt ends: at its first end token. Old configs give that token a wrong id (2); for them it
    /// is the largest id.
    fn end(&self, prompt: &[u32]) -> usize {
        let first = |id: u32| prompt.iter().position(|&x| x == id);
        match self.text.config.eos_token_id {
            Some(id) if id != 2 => first(id).unwrap_or(0),
            _ => prompt.iter().max().and_then(|&id| first(id)).unwrap_or(0),
        }
    }
}

fn project(layer: &Linear, pooled: Tensor) -> Result<Tensor> {
    let (mut tape, changes) = (Tape::off(), Changes::none());
    let pass = &mut Pass { tape: &mut tape, changes: &changes };
    l2_normalize::forward(layer.forward(pass, &Var::constant(pooled), None)?.tensor())
}

#[derive(Clone, Debug)]
struct VisionEncoder {
    config: VisionConfig,
    patch_embedding: Weight,
    class_embedding: Tensor,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
}

impl VisionEncoder {
    fn new(params: &Params, config: &VisionConfig) -> Result<Self> {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let tokens = (config.image_size / patch).pow(2) + 1;
        let embeddings = params.at("embeddings");
        let dims = LayerDims {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        Ok(VisionEncoder {
            config: config.clone(),
            patch_embedding: embeddings.weight("patch_embedding.weight", [width, config.num_channels, patch, patch])?,
            class_embedding: embeddings.tensor("class_embedding", [width])?,
            position_embedding: embeddings.tensor("position_embedding.weight", [tokens, width])?,
            pre_layrnorm: LayerNorm::new(&params.at("pre_layrnorm"), width, config.layer_norm_eps)?,
            layers: layers(&params.at("encoder"), config.num_hidden_layers, dims)?,
            post_layernorm: LayerNorm::new(&params.at("post_layernorm"), width, config.layer_norm_eps)?,
        })
    }

    /// Pictures (B, s, s, 3) -> class tokens (B, D).
    fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let VisionConfig { image_size: side, num_channels: channels, patch_size: patch, hidden_size: width, .. } =
            self.config;
        if !matches!(pictures.shape()[..], [_, h, w, c] if h == side && w == side && c == channels) {
            let detail = format!("pictures {} are not (B, {side}, {side}, {channels})", pictures.shape());
            return Err(Error::shape("vision_encoder", detail));
        }
        let (mut tape, changes) = (Tape::off(), Changes::none());
        let conv = Conv { stride: patch, padding: [0; 4] };
        let x = Var::constant(pictures.clone());
        let patches = conv2d::apply(&mut tape, &x, &self.patch_embedding, None, conv, None, None)?;
        let batch = pictures.shape()[0];
        let each = patches.tensor().shape().count() / batch;
        let mut tokens = Vec::with_capacity(batch * (each + width));
        for patches in patches.tensor().host().chunks(each) {
            tokens.extend_from_slice(self.class_embedding.host());
            tokens.extend_from_slice(patches);
        }
        let length = each / width + 1;
        let places: Vec<u32> = (0..batch).flat_map(|_| 0..length as u32).collect();
        let places = Var::constant(embedding::forward(&self.position_embedding, &places)?);
        let tokens = Var::constant(Tensor::from_slice(pictures.device(), [batch * length, width], &tokens)?);
        let h = add::apply(&mut tape, &tokens, &places)?.reshape([batch, length, width])?;
        let mut h = self.pre_layrnorm.forward(&mut tape, &h, None)?;
        for layer in &self.layers {
            h = layer.forward(&mut Pass { tape: &mut tape, changes: &changes }, &h, Mask::None)?;
        }
        let first: Vec<u32> = (0..batch).map(|b| (b * length) as u32).collect();
        let class = embedding::forward(&h.tensor().reshape([batch * length, width])?, &first)?;
        Ok(self.post_layernorm.forward(&mut tape, &Var::constant(class), None)?.tensor().clone())
    }
}

/// A layer of either tower: attention and MLP, each after a norm and with a residual.
#[derive(Clone, Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    projections: [Linear; 3],
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    dims: LayerDims,
}

#[derive(Clone, Copy, Debug)]
struct LayerDims {
    width: usize,
    inner: usize,
    heads: usize,
    act: config::Activation,
    eps: f64,
}

fn layers(params: &Params, count: usize, dims: LayerDims) -> Result<Vec<Layer>> {
    (0..count).map(|i| Layer::new(&params.at(format!("layers.{i}")), dims)).collect()
}

impl Layer {
    fn new(params: &Params, dims: LayerDims) -> Result<Self> {
        let LayerDims { width, inner, eps, .. } = dims;
        let attention = params.at("self_attn");
        let project = |name| Linear::new(&attention.at(name), width, width, true);
        Ok(Layer {
            layer_norm1: LayerNorm::new(&params.at("layer_norm1"), width, eps)?,
            projections: [project("q_proj")?, project("k_proj")?, project("v_proj")?],
            out_proj: project("out_proj")?,
            layer_norm2: LayerNorm::new(&params.at("layer_norm2"), width, eps)?,
            fc1: Linear::new(&params.at("mlp.fc1"), inner, width, true)?,
            fc2: Linear::new(&params.at("mlp.fc2"), width, inner, true)?,
            dims,
        })
    }

    fn forward(&self, pass: &mut Pass, x: &Var, mask: Mask) -> Result<Var> {
        let n = self.layer_norm1.forward(pass.tape, x, None)?;
        let [q, k, v] = &self.projections;
        let (q, k, v) = (q.forward(pass, &n, None)?, k.forward(pass, &n, None)?, v.forward(pass, &n, None)?);
        let mixed = attention::apply(pass.tape, &q, &k, &v, self.dims.heads, mask)?;
        let h = self.out_proj.forward(pass, &mixed, Some(x))?;
        let n = self.layer_norm2.forward(pass.tape, &h, None)?;
        let inner = self.fc1.forward(pass, &n, None)?;
        let act = match self.dims.act {
            config::Activation::QuickGelu => Activation::QuickGelu,
            config::Activation::Gelu => Activation::Gelu,
        };
        let inner = activation::apply(pass.tape, &inner, act)?;
        self.fc2.forward(pass, &inner, Some(&h))
    }
}
