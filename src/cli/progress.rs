//! What a job tells people and machines while it runs: bars or lines on stderr, events as JSON lines.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::{Map, Value as Json, json};

use super::clock;
use crate::{Error, Result};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Bars,
    Lines,
    Json,
    Nothing,
}

/// One finished step, as far as it concerns a reader.
#[derive(Clone, Debug, Default)]
pub struct Tick {
    /// Steps done, from 1.
    pub done: usize,
    /// Loss by part, for training.
    pub loss: Vec<f64>,
    pub lr: Option<f64>,
}

/// The voice of a job.
pub struct Reporter {
    show: Show,
    verbosity: i8,
    events: Vec<Box<dyn Write + Send>>,
    stage: Option<Stage>,
    times: Vec<(String, Duration)>,
}

struct Stage {
    name: String,
    steps: usize,
    /// Steps already done when this process began.
    first: usize,
    begun: Instant,
    bar: ProgressBar,
    line: Instant,
    line_at: usize,
}

impl Reporter {
    /// `progress` is auto, plain, json or off.
    pub fn new(progress: &str, verbosity: i8) -> Self {
        let show = match progress {
            "json" => Show::Json,
            "off" => Show::Nothing,
            _ if verbosity < 0 => Show::Nothing,
            "auto" if io::stderr().is_terminal() => Show::Bars,
            _ => Show::Lines,
        };
        Reporter { show, verbosity, events: Vec::new(), stage: None, times: Vec::new() }
    }

    /// Also sends events to a file, appended, or with `-` to stdout.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened.
    pub fn add_events(&mut self, target: &str) -> Result<()> {
        let sink: Box<dyn Write + Send> = match target {
            "-" => Box::new(io::stdout()),
            path => Box::new(append(Path::new(path))?),
        };
        self.events.push(sink);
        Ok(())
    }

    /// A line on stderr, unless quiet.
    pub fn say(&self, text: impl AsRef<str>) {
        if self.verbosity >= 0 {
            self.print(text.as_ref());
        }
    }

    /// A line on stderr if the user wants detail.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbosity > 0 {
            self.print(text.as_ref());
        }
    }

    /// A warning: on stderr, and an event.
    pub fn warn(&mut self, text: impl AsRef<str>) {
        self.print(&format!("warning: {}", text.as_ref()));
        self.event("warn", json!({ "message": text.as_ref() }));
    }

    /// Writes one event.
    pub fn event(&mut self, kind: &str, fields: Json) {
        let mut event = Map::new();
        event.insert("schema".into(), 1.into());
        event.insert("ts".into(), clock::now().into());
        event.insert("type".into(), kind.into());
        if let Json::Object(fields) = fields {
            event.extend(fields);
        }
        let line = Json::Object(event).to_string() + "\n";
        if self.show == Show::Json {
            let _ = io::stderr().write_all(line.as_bytes());
        }
        // A log that cannot be written must not cost the run its work.
        self.events.retain_mut(|sink| sink.write_all(line.as_bytes()).and_then(|()| sink.flush()).is_ok());
    }

    /// A stage of `steps` steps begins, `done` of which are done already.
    pub fn stage_start(&mut self, name: &str, steps: usize, done: usize) {
        self.event("stage.start", json!({ "stage": name, "steps": steps, "done": done }));
        let target = if self.show == Show::Bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target).with_position(done as u64);
        bar.set_style(style(done));
        bar.set_prefix(name.to_string());
        bar.enable_steady_tick(Duration::from_millis(500));
        let now = Instant::now();
        self.stage = Some(Stage { name: name.into(), steps, first: done, begun: now, bar, line: now, line_at: done });
        if self.show == Show::Lines {
            let resumed = if done > 0 { format!(", {done} done") } else { String::new() };
            self.print(&format!("{name}: {steps} steps{resumed}"));
        }
    }

    /// A step is done.
    pub fn step(&mut self, tick: &Tick) {
        let Some(stage) = &mut self.stage else { return };
        let rate = (tick.done - stage.first) as f64 / stage.begun.elapsed().as_secs_f64().max(1e-9);
        let message = describe(tick);
        stage.bar.set_message(message.clone());
        stage.bar.set_position(tick.done as u64);
        let mut line = None;
        let since = stage.line.elapsed();
        let far = (tick.done - stage.line_at) * 20 >= stage.steps && since >= Duration::from_secs(1);
        let due = far || since >= Duration::from_secs(10) || tick.done == stage.steps;
        if self.show == Show::Lines && due {
            (stage.line, stage.line_at) = (Instant::now(), tick.done);
            let left = Duration::from_secs_f64((stage.steps - tick.done) as f64 / rate);
            let percent = 100 * tick.done / stage.steps.max(1);
            let elapsed = clock::span(stage.begun.elapsed());
            line = Some(format!(
                "{} {percent:3}% {}/{} [{elapsed}<{}, {}] {message}",
                stage.name,
                tick.done,
                stage.steps,
                clock::span(left),
                pace(rate)
            ));
        }
        let mut fields = json!({ "stage": stage.name, "step": tick.done, "steps": stage.steps, "it_s": number(rate) });
        if !tick.loss.is_empty() {
            fields["loss"] = number(tick.loss.iter().sum());
        }
        if tick.loss.len() > 1 {
            fields["losses"] = tick.loss.iter().map(|&l| number(l)).collect();
        }
        if let Some(lr) = tick.lr {
            fields["lr"] = number(lr);
        }
        self.event("step", fields);
        if let Some(line) = line {
            self.print(line.trim_end());
        }
    }

    /// The stage is over.
    pub fn stage_end(&mut self) {
        let Some(stage) = self.stage.take() else { return };
        let took = stage.begun.elapsed();
        if self.show == Show::Bars {
            stage.bar.abandon();
        }
        self.event("stage.end", json!({ "stage": stage.name, "seconds": number(took.as_secs_f64()) }));
        match self.times.iter_mut().find(|(name, _)| *name == stage.name) {
            Some((_, time)) => *time += took,
            None => self.times.push((stage.name, took)),
        }
    }

    /// Stages and how long they took, in the order of their beginnings.
    pub fn times(&self) -> &[(String, Duration)] {
        &self.times
    }

    fn print(&self, text: &str) {
        let write = || {
            let _ = writeln!(io::stderr(), "{text}");
        };
        match &self.stage {
            Some(stage) if self.show == Show::Bars => stage.bar.suspend(write),
            _ => write(),
        }
    }
}

/// Opens a log for appending; its folder is made if need be.
fn append(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path, "open the event log"))
}

fn describe(tick: &Tick) -> String {
    let mut text = String::new();
    if !tick.loss.is_empty() {
        text += &format!("loss {:.4}", tick.loss.iter().sum::<f64>());
    }
    if let Some(lr) = tick.lr {
        text += &format!("  lr {lr:.1e}");
    }
    text
}

fn style(first: usize) -> ProgressStyle {
    let rate = move |state: &ProgressState, w: &mut dyn std::fmt::Write| {
        let done = state.pos().saturating_sub(first as u64) as f64;
        let _ = w.write_str(&pace(done / state.elapsed().as_secs_f64().max(1e-9)));
    };
    let left = move |state: &ProgressState, w: &mut dyn std::fmt::Write| {
        let done = state.pos().saturating_sub(first as u64);
        let rest = state.len().unwrap_or(0).saturating_sub(state.pos());
        let _ = match done {
            0 => w.write_str("?"),
            _ => w.write_str(&clock::span(state.elapsed().mul_f64(rest as f64 / done as f64))),
        };
    };
    ProgressStyle::with_template("{prefix:<14} {percent:>3}%|{bar:20}| {pos}/{len} [{took}<{left}, {rate}] {msg}")
        .expect("the template should be valid")
        .with_key("rate", rate)
        .with_key("took", |state: &ProgressState, w: &mut dyn std::fmt::Write| {
            let _ = w.write_str(&clock::span(state.elapsed()));
        })
        .with_key("left", left)
        .progress_chars("\u{2588}\u{2589}\u{258a}\u{258b}\u{258c}\u{258d}\u{258e}\u{258f} ")
}

/// Steps per second or, below one, seconds per step.
fn pace(rate: f64) -> String {
    if rate >= 1.0 || rate == 0.0 { format!("{rate:.2}it/s") } else { format!("{:.2}s/it", 1.0 / rate) }
}

/// A JSON number; what JSON cannot hold becomes a string.
pub fn number(x: f64) -> Json {
    serde_json::Number::from_f64(x).map_or_else(|| x.to_string().into(), Json::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_json_lines_and_numbers_stay_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/events.jsonl");
        let mut reporter = Reporter::new("off", -1);
        reporter.add_events(path.to_str().unwrap()).unwrap();
        reporter.stage_start("ttt", 2, 0);
        reporter.step(&Tick { done: 1, loss: vec![0.5, f64::NAN], lr: Some(1e-6) });
        reporter.stage_end();
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<Json> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["stage.start", "step", "stage.end"]);
        assert_eq!(events[1]["losses"], json!([0.5, "NaN"]));
        assert_eq!(events[1]["lr"], json!(1e-6));
        assert!(events.iter().all(|e| e["schema"] == 1 && e["ts"].is_string()));
    }

    #[test]
    fn slow_steps_are_told_in_seconds() {
        assert_eq!(pace(4.0), "4.00it/s");
        assert_eq!(pace(0.25), "4.00s/it");
    }
}
