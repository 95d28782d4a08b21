//! A file of gigabytes in and out, beside s5cmd on the same server; and what memory it takes.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use testbed::{S3Server, checkout};
use tokio::{process::Command, time::sleep};

use crate::{
    bed::{BUCKET, Bed, On, drain},
    figure::Figure,
    prompts,
};

const KEY: &str = "in/large.bin";
const MISSING: &str = "s5cmd is missing: run scripts/setup --tools, or point S5CMD at one";
/// After a boot and a first job the allocator and Chromium settle.
const SETTLE: Duration = Duration::from_secs(3);

/// What the worker did with the file, and what it held.
pub(crate) struct Pass {
    seconds_in: f64,
    seconds_out: f64,
    pub(crate) idle: u64,
    pub(crate) peak: u64,
}

pub(crate) async fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let s5cmd = s5cmd()?;
    let pass = pass(bed).await?;
    let (mut theirs_in, mut theirs_out) = (0.0, 0.0);
    for _ in 0..bed.sizes.passes {
        let (down, up) = transfer(bed, &s5cmd).await?;
        theirs_in += down;
        theirs_out += up;
    }
    let megabytes = (bed.sizes.megabytes << 20) as f64 / 1e6 * bed.sizes.passes as f64;
    let figure = |name: &str, ours: f64, theirs: f64, bound: &str| {
        let (ours, theirs) = (megabytes / ours, megabytes / theirs);
        Figure::new("large", name, ours / theirs, "")
            .at_least(1.0)
            .beside(format!("{ours:.0} MB/s, s5cmd {theirs:.0} MB/s ({} MiB)", bed.sizes.megabytes))
            .bound(bound)
    };
    Ok(vec![
        figure(
            "large file in ÷ s5cmd",
            pass.seconds_in,
            theirs_in,
            "the worker reads in order, with 16 MiB on their way; s5cmd writes its parts as they come",
        ),
        figure(
            "large file out ÷ s5cmd",
            pass.seconds_out,
            theirs_out,
            "the worker sends three parts of 5 MiB at a time, makes the file's SHA-256, and stores history and prompt",
        ),
    ])
}

/// The file through a worker, as often as the sizes say; once for all rows of a run.
pub(crate) async fn pass(bed: &Bed) -> Result<&Pass> {
    bed.pass.get_or_try_init(|| go_through(bed)).await
}

async fn go_through(bed: &Bed) -> Result<Pass> {
    let name = "large";
    let s3 = bed.s3().await?;
    put_large(bed, s3).await?;
    s3.put(BUCKET, "in/small.bin", vec![1; 1 << 20]).await?;
    let engine = bed.engine(On::Standin, name)?;
    let (worker, mut queue) = bed.boot(name, bed.worker(name, name, &engine).await?).await?;
    let inputs = |key: &str| json!({"1.file": format!("s3://{BUCKET}/{key}")});
    sleep(SETTLE).await;
    let idle = status(worker.pid(), "VmRSS")?;
    queue.publish("large-warm-up", &prompts::work(0.0, 1, 0), &inputs("in/small.bin")).await?;
    queue.replies(1).await?;
    // Resets the peak, so that the boot's does not count.
    fs::write(format!("/proc/{}/clear_refs", worker.pid()), "5").context("cannot reset the peak")?;
    let (mut seconds_in, mut seconds_out) = (0.0, 0.0);
    for number in 0..bed.sizes.passes {
        let prompt = prompts::work(0.0, bed.sizes.megabytes, number + 1);
        rustix::fs::sync();
        queue.publish(&format!("large-{number}"), &prompt, &inputs(KEY)).await?;
        let replies = queue.replies(1).await?;
        let result = &replies.first().context("no answer")?.result;
        let made = result.outputs.iter().filter_map(|output| Some(output.file.as_ref()?.size)).sum::<u64>();
        ensure!(made == bed.sizes.megabytes << 20, "it made {made} bytes");
        seconds_in += seconds(result.timings.staged_ms);
        seconds_out += seconds(result.timings.uploaded_ms);
        fs::remove_dir_all(s3.path(BUCKET, &format!("large/large-{number}")))?;
    }
    let peak = status(worker.pid(), "VmHWM")?;
    drain(worker).await?;
    Ok(Pass { seconds_in, seconds_out, idle, peak })
}

/// The same file down and up again; seconds.
async fn transfer(bed: &Bed, s5cmd: &Path) -> Result<(f64, f64)> {
    let s3 = bed.s3().await?;
    let local = bed.folder.join("s5cmd.bin");
    let local_name = local.to_str().context("a path that is no UTF-8")?;
    let copy = async |from: &str, to: &str| -> Result<f64> {
        let mut command = Command::new(s5cmd);
        command.args(["--endpoint-url", &s3.endpoint(), "--log", "error", "cp", from, to]);
        command.envs(s3.env()).kill_on_drop(true);
        // Nobody writes back what another one has written.
        rustix::fs::sync();
        let begin = Instant::now();
        let output = command.output().await.with_context(|| format!("cannot run {}", s5cmd.display()))?;
        if !output.status.success() {
            bail!("s5cmd cp {from} {to}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(begin.elapsed().as_secs_f64())
    };
    let down = copy(&format!("s3://{BUCKET}/{KEY}"), local_name).await?;
    let up = copy(local_name, &format!("s3://{BUCKET}/out/s5cmd.bin")).await?;
    fs::remove_file(&local)?;
    fs::remove_file(s3.path(BUCKET, "out/s5cmd.bin"))?;
    Ok((down, up))
}

fn s5cmd() -> Result<PathBuf> {
    let named = std::env::var_os("S5CMD").filter(|path| !path.is_empty());
    let path = named.map_or_else(|| checkout().join(".cache/s5cmd/s5cmd/bin/s5cmd"), PathBuf::from);
    ensure!(path.is_file(), "{MISSING} ({} is not there)", path.display());
    Ok(path)
}

fn seconds(milliseconds: u64) -> f64 {
    Duration::from_millis(milliseconds.max(1)).as_secs_f64()
}

/// A line of /proc/<pid>/status, in bytes.
fn status(pid: u32, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: u64 = line.context("no such line")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// Content that differs in every block. Through S3: then the server has its ETag and checksum, and does not make
/// them again for each range.
async fn put_large(bed: &Bed, s3: &S3Server) -> Result<()> {
    let path = bed.folder.join("large.bin");
    let mut file = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(&path)?);
    for block in 0..bed.sizes.megabytes << 8 {
        file.write_all(&block.to_le_bytes().repeat(512))?;
    }
    file.flush()?;
    s3.put_file(BUCKET, KEY, &path).await?;
    Ok(fs::remove_file(&path)?)
}
