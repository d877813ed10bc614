//! Times every operation on the shapes of the real model, and the products and convolutions of one frame:
//! `cargo bench --bench kernels -- [FILTER] [--only NAME,NAME] [--json] [--threads N] [--f32] [--seconds S]`.
//!
//! FILTER is a part of a name, `--only` beginnings of names. Weights are f16 unless `--f32`. Names:
//! `gemm_<M>x<N>x<K>`, `conv_<H>x<W>x<Cin>x<Cout>` (size of the output; `_s2` is stride 2), with `_backward`
//! for their input gradients, and `<operation> <case>` for the rest.

use std::time::{Duration, Instant};

use customttt::ops::conv2d::{self, Conv};
use customttt::ops::spec::OpSpec;
use customttt::ops::{self, check, linear};
use customttt::{DType, Device, Error, HostData, Philox, Result, Tape, Tensor, Var, Weight};

const GEMMS: &[[usize; 3]] = &[
    [1024, 2560, 320],
    [256, 5120, 640],
    [64, 10240, 1280],
    [16, 10240, 1280],
    [1024, 320, 1280],
    [256, 640, 2560],
    [64, 1280, 5120],
    [16, 1280, 5120],
    [1024, 960, 320],
    [256, 1920, 640],
    [64, 3840, 1280],
    [16, 3840, 1280],
    [1024, 320, 320],
    [256, 640, 640],
    [64, 1280, 1280],
    [16, 1280, 1280],
    [1024, 320, 640],
    [1024, 320, 960],
    [256, 640, 320],
    [256, 640, 960],
    [256, 640, 1280],
    [256, 640, 1920],
    [64, 1280, 640],
    [64, 1280, 1920],
    [64, 1280, 2560],
    [16, 1280, 2560],
];

/// Output size, input channels, output channels, stride.
const CONVS: &[[usize; 4]] = &[
    [32, 4, 320, 1],
    [32, 320, 320, 1],
    [32, 640, 320, 1],
    [32, 960, 320, 1],
    [32, 640, 640, 1],
    [32, 320, 4, 1],
    [16, 320, 320, 2],
    [16, 320, 640, 1],
    [16, 640, 640, 1],
    [16, 960, 640, 1],
    [16, 1280, 640, 1],
    [16, 1920, 640, 1],
    [16, 1280, 1280, 1],
    [8, 640, 640, 2],
    [8, 640, 1280, 1],
    [8, 1280, 1280, 1],
    [8, 1920, 1280, 1],
    [8, 2560, 1280, 1],
    [4, 1280, 1280, 2],
    [4, 1280, 1280, 1],
    [4, 2560, 1280, 1],
];

struct Args {
    filter: String,
    only: Vec<String>,
    json: bool,
    threads: Option<usize>,
    dtype: DType,
    budget: Duration,
}

impl Args {
    fn parse() -> Option<Self> {
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

    fn wants(&self, name: &str) -> bool {
        let listed = self.only.is_empty() || self.only.iter().any(|o| name.starts_with(o.as_str()));
        listed && name.contains(&self.filter)
    }

    /// Repeats `work` for the time budget, at least three times, and prints one line.
    fn measure(&self, name: &str, flops: u64, bytes: u64, mut work: impl FnMut() -> Result<()>) -> Result<()> {
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
            let line = serde_json::json!({"name": name, "seconds": seconds, "cpu_seconds": cpu, "gflops": gflops, "gb_per_s": rate, "threads": threads});
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

fn tensor(device: &Device, stream: u32, shape: &[usize], scale: f32) -> Result<Tensor> {
    let mut x = Philox::new(1, stream).normal_vec(0, shape.iter().product());
    x.iter_mut().for_each(|v| *v *= scale);
    Tensor::from_slice(device, shape, &x)
}

fn weight(device: &Device, args: &Args, shape: &[usize]) -> Result<Weight> {
    let fan_in: usize = shape[1..].iter().product();
    let x = tensor(device, 2, shape, (fan_in as f32).sqrt().recip())?.to_vec();
    Weight::new(device, shape, &HostData::from(x).to_dtype(args.dtype))
}

fn gemm(args: &Args, device: &Device, [m, n, k]: [usize; 3]) -> Result<()> {
    let name = format!("gemm_{m}x{n}x{k}");
    let back = format!("{name}_backward");
    if !args.wants(&name) && !args.wants(&back) {
        return Ok(());
    }
    let w = weight(device, args, &[n, k])?;
    let bytes = (4 * m * (n + k) + w.bytes()) as u64;
    let flops = 2 * (m * n * k) as u64;
    let (x, dy) = (tensor(device, 1, &[m, k], 1.0)?, tensor(device, 3, &[m, n], 1.0)?);
    if args.wants(&name) {
        args.measure(&name, flops, bytes, || linear::forward(&x, &w, None, None).map(drop))?;
    }
    if args.wants(&back) && args.only.is_empty() {
        args.measure(&back, flops, bytes, || linear::backward(&dy, &w, None).map(drop))?;
    }
    Ok(())
}

fn conv(args: &Args, device: &Device, [size, c, n, stride]: [usize; 4]) -> Result<()> {
    let suffix = if stride == 2 { "_s2" } else { "" };
    let name = format!("conv_{size}x{size}x{c}x{n}{suffix}");
    let back = format!("{name}_backward");
    if !args.wants(&name) && !args.wants(&back) {
        return Ok(());
    }
    let w = weight(device, args, &[n, c, 3, 3])?;
    let input = [1, size * stride, size * stride, c];
    let (x, dy) = (tensor(device, 1, &input, 1.0)?, tensor(device, 3, &[1, size, size, n], 1.0)?);
    let moves = Conv { stride, padding: [1; 4] };
    let flops = 2 * (size * size * n * c * 9) as u64;
    let bytes = (x.bytes() + dy.bytes() + w.bytes()) as u64;
    if args.wants(&name) {
        args.measure(&name, flops, bytes, || conv2d::forward(&x, &w, None, moves, None, None).map(drop))?;
    }
    if args.wants(&back) && args.only.is_empty() {
        args.measure(&back, flops, bytes, || conv2d::backward(&dy, &w, moves, x.shape(), None).map(drop))?;
    }
    Ok(())
}

/// The forward pass of every real case, weight packing included where the operation's operands are tensors.
fn spec(args: &Args, device: &Device, spec: &dyn OpSpec) -> Result<()> {
    for case in spec.real_cases() {
        let name = format!("{} {case}", spec.name());
        if !args.wants(&name) {
            continue;
        }
        let inputs = spec.inputs(&case);
        let operands = check::operands(spec, &case);
        let vars = inputs
            .iter()
            .zip(&operands)
            .map(|(i, x)| Ok(Var::constant(Tensor::from_slice(device, i.shape, x)?)))
            .collect::<Result<Vec<_>>>()?;
        args.measure(&name, spec.flops(&case), spec.bytes(&case), || {
            spec.run(&case, &mut Tape::off(), &vars).map(drop)
        })?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let usage = "kernels [FILTER] [--only NAME,NAME] [--json] [--threads N] [--f32] [--seconds S]";
    let args = Args::parse().ok_or_else(|| Error::Check { detail: format!("usage: {usage}") })?;
    let device = Device::cpu(args.threads)?;
    device.run(|| {
        GEMMS.iter().try_for_each(|&shape| gemm(&args, &device, shape))?;
        CONVS.iter().try_for_each(|&shape| conv(&args, &device, shape))?;
        ops::ALL.iter().try_for_each(|&op| spec(&args, &device, op))
    })
}
