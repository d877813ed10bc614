//! Times every operation on the shapes of the real model, and the products and convolutions of one frame:
//! `cargo bench --bench kernels -- [FILTER] [--only NAME,NAME] [--json] [--threads N] [--f32] [--seconds S]`.
//!
//! FILTER is a part of a name, `--only` beginnings of names. Weights are f16 unless `--f32`. Names:
//! `gemm_<M>x<N>x<K>`, `conv_<H>x<W>x<Cin>x<Cout>` (size of the output; `_s2` is stride 2), with `_backward`
//! for their input gradients, `pack_<shape>`, `merge_<shape>` (of a LoRA of rank 32), and `<operation> <case>` for the rest.

mod harness;

use harness::Args;

use customttt::ops::conv2d::{self, Conv};
use customttt::ops::spec::OpSpec;
use customttt::ops::{self, check, linear};
use customttt::{Device, Error, HostData, Philox, Result, Tape, Tensor, Var, Weight};

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

/// Packing and merging of a weight, bytes read and written.
fn pack(args: &Args, device: &Device, shape: &[usize]) -> Result<()> {
    let dims: Vec<_> = shape.iter().map(usize::to_string).collect();
    let (name, merge) = (format!("pack_{}", dims.join("x")), format!("merge_{}", dims.join("x")));
    if !args.wants(&name) && !args.wants(&merge) {
        return Ok(());
    }
    let x = tensor(device, 2, shape, 1.0)?.to_vec();
    let data = HostData::from(x);
    let data = data.to_dtype(args.dtype);
    let (n, k, r) = (shape[0], shape[1..].iter().product(), 32);
    if args.wants(&name) {
        let bytes = 2 * n * k * args.dtype.size();
        args.measure(&name, 0, bytes as u64, || Weight::new(device, shape, &data).map(drop))?;
    }
    if args.wants(&merge) {
        let w = Weight::new(device, shape, &data)?;
        let (down, up) = (tensor(device, 3, &[r, k], 1.0)?, tensor(device, 4, &[n, r], 1.0)?);
        let (flops, bytes) = (2 * n * k * r, n * k * (4 + args.dtype.size()));
        args.measure(&merge, flops as u64, bytes as u64, || w.merged(&down, &up, 1.0).map(drop))?;
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
        pack(&args, &device, &[1280, 1280])?;
        pack(&args, &device, &[10240, 1280])?;
        pack(&args, &device, &[1280, 1280, 3, 3])?;
        ops::ALL.iter().try_for_each(|&op| spec(&args, &device, op))
    })
}
