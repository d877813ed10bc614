//! What both benchmarks share: arguments, repetition and the lines they print.

use std::time::{Duration, Instant};

use customttt::{DType, Result};

/// Arguments of a benchmark.
pub struct Args {
    pub filter: String,
    pub only: Vec<String>,
    pub json: bool,
    pub threads: Option<usize>,
    pub dtype: DType,
    pub budget: Duration,
}

impl Args {
    /// The process's arguments; `None` if they cannot be understood.
    pub fn parse() -> Option<Self> {
        let mut args = Args {
            filter: String::new(),
            only: Vec::new(),
            json: false,
            threads: None,
            dtype: DType::F16,
            budget: Duration::from_secs(1),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--bench" => {}
                "--json" => args.json = true,
                "--f32" => args.dtype = DType::F32,
                "--only" => args.only = words.next()?.split(',').map(String::from).collect(),
                "--threads" => args.threads = Some(words.next()?.parse().ok()?),
                "--seconds" => args.budget = Duration::try_from_secs_f64(words.next()?.parse().ok()?).ok()?,
                flag if flag.starts_with('-') => return None,
                part => args.filter = part.into(),
            }
        }
        Some(args)
    }

    /// True if the item called `name` is asked for.
    pub fn wants(&self, name: &str) -> bool {
        let listed = self.only.is_empty() || self.only.iter().any(|o| name.starts_with(o.as_str()));
        listed && name.contains(&self.filter)
    }

    /// Repeats `work` for the time budget, at least three times, and prints one line.
    pub fn measure(&self, name: &str, flops: u64, bytes: u64, mut work: impl FnMut() -> Result<()>) -> Result<()> {
        work()?;
        let begin = Instant::now();
        let (mut seconds, mut cpu) = (Vec::new(), Vec::new());
        while seconds.len() < 3 || begin.elapsed() < self.budget {
            let (start, cpu_start) = (Instant::now(), cpu_seconds());
            work()?;
            seconds.push(start.elapsed().as_secs_f64());
            cpu.push(cpu_seconds() - cpu_start);
        }
        seconds.sort_by(f64::total_cmp);
        cpu.sort_by(f64::total_cmp);
        let cpu = cpu[cpu.len() / 2];
        let (min, median, max) = (seconds[0], seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        let (gflops, rate) = (flops as f64 / median * 1e-9, bytes as f64 / median * 1e-9);
        if self.json {
            let seconds = serde_json::json!({"min": min, "median": median, "max": max});
            let line = serde_json::json!({"name": name, "seconds": seconds, "cpu_seconds": cpu, "peak_rss_mib": peak_rss_mib(), "gflops": gflops, "gb_per_s": rate, "threads": threads});
            println!("{line}");
        } else {
            let rates = [min, median, cpu].map(|s| flops as f64 / s * 1e-9);
            let [min, median, cpu] = [min, median, cpu].map(|s| s * 1e3);
            println!(
                "{name:40} ms: min {min:8.3} median {median:8.3} cpu {cpu:8.3}  GFLOP/s: {:6.1} {:6.1} {:6.1}  {rate:5.1} GB/s",
                rates[0], rates[1], rates[2]
            );
        }
        Ok(())
    }
}

/// Processor time of all threads.
fn cpu_seconds() -> f64 {
    #[repr(C)]
    struct Time {
        seconds: i64,
        nanoseconds: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Time) -> i32;
    }
    const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
    let mut time = Time { seconds: 0, nanoseconds: 0 };
    // SAFETY: `time` has the layout of the C library's `timespec` on 64-bit Linux.
    unsafe { clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.seconds as f64 + time.nanoseconds as f64 * 1e-9
}

/// Most memory that the process has had, in MiB; 0 where the system does not say.
fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}
