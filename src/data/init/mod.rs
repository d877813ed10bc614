//! Models with random weights in the folders that diffusers and transformers read, so that everything can be run,
//! compared and timed without a download.

mod tokenizer;

pub use tokenizer::write_tokenizer;

use std::io::Write;
use std::path::Path;

use crate::{Result, fs};

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write_atomically(path, |file| file.write_all(text.as_bytes()))
}
