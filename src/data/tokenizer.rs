//! CLIP's byte-pair tokenizer, from the files of a model folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::folder::{read_json, read_text};
use crate::{Error, Result};

const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A prompt in the numbers of the text encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Start token, text, end token, padding.
    pub ids: Vec<u32>,
    /// The end of the prompt for which there was no room.
    pub truncated: Option<String>,
}

/// Turns prompts into token ids exactly as transformers does.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    length: usize,
    /// Characters that are surely more than the text encoder has room for.
    enough: usize,
    bos: u32,
    eos: u32,
    pad: u32,
}

impl Tokenizer {
    /// Reads `vocab.json` and `merges.txt`, or `tokenizer.json`; and, where they exist, `tokenizer_config.json` and
    /// `special_tokens_map.json` for the special tokens, the padding and the length.
    ///
    /// # Errors
    /// [`Error::Model`] if they are missing or malformed.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut words = Words::read(dir)?;
        let optional = |name: &str| -> Result<Map<String, Value>> {
            let path = dir.join(name);
            if path.exists() { read_json(&path) } else { Ok(Map::new()) }
        };
        let mut config = optional("tokenizer_config.json")?;
        match config.get("added_tokens_decoder") {
            Some(decoder) => words.added = added_tokens(decoder).map_err(|e| words.wrong(e))?,
            // The map is the older place, and wins.
            None => config.extend(optional("special_tokens_map.json")?),
        }
        words.build(&config)
    }

    /// Token ids of a prompt: always [`length`](Self::length) of them. The strings of special tokens stand for
    /// those tokens also inside of a prompt.
    ///
    /// # Errors
    /// [`Error::Config`] if the prompt cannot be encoded.
    pub fn encode(&self, prompt: &str) -> Result<Encoded> {
        // No prompt may take long, whatever its length: what follows these characters is cut off in any case.
        let visible = prompt.char_indices().filter(|(_, c)| !c.is_whitespace());
        let head = visible.map(|(at, _)| at).nth(self.enough).map_or(prompt, |end| &prompt[..end]);
        let encoding = self.inner.encode(head, false).map_err(|e| Error::config("prompt", e.to_string()))?;
        let room = self.length - 2;
        let kept = &encoding.get_ids()[..encoding.len().min(room)];
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.bos);
        ids.extend(kept);
        ids.push(self.eos);
        ids.resize(self.length, self.pad);
        let cut = encoding.get_offsets().get(room).map(|&(start, _)| prompt.floor_char_boundary(start));
        Ok(Encoded { ids, truncated: cut.map(|start| prompt[start..].to_string()) })
    }

    /// Ids of every prompt.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The id that ends a prompt.
    pub fn end(&self) -> u32 {
        self.eos
    }
}

/// What the files say.
struct Words {
    path: PathBuf,
    vocab: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
    added: Vec<AddedToken>,
}

/// A special token: its text, or its text with switches.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Special {
    Plain(String),
    Detailed {
        content: String,
        #[serde(default)]
        normalized: bool,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
    },
}

impl Special {
    fn token(self) -> AddedToken {
        match self {
            Special::Plain(content) => AddedToken::from(content, true),
            Special::Detailed { content, normalized, single_word, lstrip, rstrip } => {
                AddedToken { content, normalized, single_word, lstrip, rstrip, special: true }
            }
        }
    }
}

impl Words {
    fn read(dir: &Path) -> Result<Self> {
        let vocab_path = dir.join("vocab.json");
        if !vocab_path.exists() && dir.join("tokenizer.json").exists() {
            return Self::read_joint(&dir.join("tokenizer.json"));
        }
        let path = dir.join("merges.txt");
        let text = read_text(&path)?;
        let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
        let pairs = lines.map(|line| line.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())));
        let merges = pairs.collect::<Option<_>>().ok_or_else(|| Error::model(&path, "a line is not a pair"))?;
        Ok(Words { vocab: read_json(&vocab_path)?, path: vocab_path, merges, added: Vec::new() })
    }

    /// The single file that recent versions of transformers write.
    fn read_joint(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Merge {
            Pair(String, String),
            Line(String),
        }
        #[derive(Deserialize)]
        struct Model {
            vocab: BTreeMap<String, u32>,
            merges: Vec<Merge>,
        }
        #[derive(Deserialize)]
        struct Joint {
            model: Model,
            #[serde(default)]
            added_tokens: Vec<Special>,
        }
        let joint: Joint = read_json(path)?;
        let pairs = joint.model.merges.into_iter().map(|merge| match merge {
            Merge::Pair(a, b) => Some((a, b)),
            Merge::Line(line) => line.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
        });
        let merges = pairs.collect::<Option<_>>().ok_or_else(|| Error::model(path, "a merge is not a pair"))?;
        let added = joint.added_tokens.into_iter().map(Special::token).collect();
        Ok(Words { path: path.into(), vocab: joint.model.vocab, merges, added })
    }

    fn build(self, config: &Map<String, Value>) -> Result<Tokenizer> {
        let named = |key: &str, default: &str| -> Result<AddedToken> {
            let value = config.get(key).filter(|v| !v.is_null());
            let special = match value {
                Some(value) => Special::deserialize(value).map_err(|e| self.wrong(format!("{key}: {e}")))?,
                None => Special::Plain(default.into()),
            };
            Ok(special.token())
        };
        const END: &str = "<|endoftext|>";
        let (bos, eos) = (named("bos_token", "<|startoftext|>")?, named("eos_token", END)?);
        let (unk, pad) = (named("unk_token", END)?, named("pad_token", END)?);
        let id = |token: &AddedToken| {
            let id = self.vocab.get(&token.content).copied();
            id.ok_or_else(|| self.wrong(format!("has no entry for the special token {:?}", token.content)))
        };
        let ids = (id(&bos)?, id(&eos)?, id(&pad)?);
        let length = match config.get("model_max_length").and_then(Value::as_f64) {
            Some(length) if (3.0..=4096.0).contains(&length) => length as usize,
            // Absent, or transformers' 1e30 for "unknown".
            None => 77,
            Some(length) if length > 1e6 => 77,
            Some(length) => return Err(self.wrong(format!("model_max_length {length} is out of range"))),
        };

        let vocab = self.vocab.iter().map(|(word, &id)| (word.clone(), id)).collect::<tokenizers::models::bpe::Vocab>();
        let failed = |e: tokenizers::Error| self.wrong(e.to_string());
        let model = BPE::builder()
            .vocab_and_merges(vocab, self.merges.clone())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".into())
            .unk_token(unk.content.clone())
            .build()
            .map_err(failed)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(failed)?;
        let normalizer = Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
        inner.with_normalizer(Some(normalizer)).map_err(failed)?;
        let words = SplitPattern::Regex(WORDS.into());
        let split = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(failed)?;
        let bytes = ByteLevel::new(false, true, true);
        inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![split.into(), bytes.into()])));

        // No token covers more bytes than the longest word has letters, and composing characters takes away less
        // than half of their number in bytes.
        let longest = self.vocab.keys().map(|word| word.chars().count()).max().unwrap_or(1);
        let enough = 4 * length * longest;

        // A token of the same text replaces the one before: the padding's switches become those of the end token.
        let mut tokens = self.added.clone();
        let listed: Vec<_> = tokens.iter().map(|t| t.content.clone()).collect();
        tokens.extend([bos, eos, unk, pad].into_iter().filter(|t| !listed.contains(&t.content)));
        for token in tokens {
            if self.vocab.contains_key(&token.content) {
                inner.add_tokens([token]).map_err(failed)?;
            } else {
                return Err(self.wrong(format!("has no entry for the added token {:?}", token.content)));
            }
        }
        Ok(Tokenizer { inner, length, enough, bos: ids.0, eos: ids.1, pad: ids.2 })
    }

    fn wrong(&self, detail: String) -> Error {
        Error::model(&self.path, detail)
    }
}

/// The tokens of `added_tokens_decoder`, by id.
fn added_tokens(decoder: &Value) -> std::result::Result<Vec<AddedToken>, String> {
    let map = BTreeMap::<String, Special>::deserialize(decoder).map_err(|e| format!("added_tokens_decoder: {e}"))?;
    let mut tokens = Vec::new();
    for (id, special) in map {
        tokens.push((id.parse::<u32>().map_err(|_| format!("added_tokens_decoder: {id:?}"))?, special.token()));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Tokenizer(length {}, ids {} {} {})", self.length, self.bos, self.eos, self.pad)
    }
}
