//! The environment variables that ComfyUI and its nodes get: an allow-list, and what `comfyui.env` names. All others of
//! the worker are kept from them.

use tokio::process::Command;

use crate::text::is_credential;

/// By their whole name, in whatever case.
const NAMES: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "HOSTNAME",
    "TMPDIR",
    "TEMP",
    "TMP",
    "NO_COLOR",
    "VIRTUAL_ENV",
    // Libraries: CUDA in odd places, a preloaded allocator.
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LIBRARY_PATH",
    "CPATH",
    "CC",
    "CXX",
    // Where models are fetched from, and how.
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_DATASETS_CACHE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
];

/// By how their name begins.
const PREFIXES: &[&str] = &[
    "LC_",
    "PYTHON",
    "CONDA",
    "XDG_",
    "SSL_CERT_",
    "COMFYUI_",
    "HF_HUB_",
    "TRANSFORMERS_",
    "DIFFUSERS_",
    "SAFETENSORS_",
    "MALLOC_",
    "GLIBC_",
    // Devices and their libraries.
    "CUDA",
    "CUDNN",
    "CUBLAS",
    "NVIDIA",
    "NCCL",
    "TENSORRT",
    "HIP",
    "ROCM",
    "ROCR",
    "ROC_",
    "HSA",
    "AMD",
    "MIOPEN",
    "GPU_",
    "ONEAPI",
    "ONEDNN",
    "ZE_",
    "SYCL",
    "IPEX",
    "UR_",
    "ASCEND",
    "TORCH",
    "PYTORCH",
    "TRITON",
    "XFORMERS",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS",
    "NUMEXPR",
    "NUMBA",
];

/// Gives a program of ComfyUI's what it may see of this process's environment, and nothing else.
pub(super) fn inherit(command: &mut Command) {
    command.env_clear();
    let mut withheld = Vec::new();
    for (name, value) in std::env::vars_os() {
        match (name.to_str(), value.to_str()) {
            (Some(text), Some(content)) if is_harmless(text, content) => {
                command.env(name, value);
            }
            _ => withheld.push(name.to_string_lossy().into_owned()),
        }
    }
    withheld.sort_unstable();
    tracing::debug!(?withheld, "variables that ComfyUI does not get; see comfyui.env");
}

fn is_harmless(name: &str, value: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let listed = NAMES.contains(&name.as_str()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    listed && !is_secret(&name) && !holds_a_password(value)
}

/// Names that say so do not pass by their beginning: `HF_HUB_TOKEN`, `COMFYUI_API_KEY`.
fn is_secret(name: &str) -> bool {
    let ends = ["_KEY", "_PASS", "_PWD", "_AUTH"];
    is_credential(name) || ends.iter().any(|end| name.ends_with(end))
}

/// `http://user:password@proxy:3128`
fn holds_a_password(value: &str) -> bool {
    value
        .split("://")
        .skip(1)
        .any(|rest| rest.split(['/', '?', '#']).next().is_some_and(|host| host.contains('@')))
}

#[cfg(test)]
mod tests {
    use super::is_harmless;

    #[test]
    fn what_is_not_listed_stays_with_the_worker() {
        for name in [
            "DATABASE_URL",
            "AWS_PROFILE",
            "COMFY_WORKER_AMQP_URL",
            "RABBITMQ_URL",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "SENTRY_DSN",
            "KUBERNETES_SERVICE_HOST",
            "PIP_INDEX_URL",
            "HF_TOKEN",
            "HF_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "COMFYUI_API_KEY",
            "COMFYUI_MANAGER_SIGNING_KEY",
            "PYTHON_KEYRING_PASSWORD",
            "NVIDIA_API_KEY",
            "GPU_CLUSTER_AUTH",
            "XDG_SECRET",
            "PATHS",
            "MY_PATH",
            "GITHUB_PAT",
            "SSH_AUTH_SOCK",
            "COMFY_PHASES",
            "",
        ] {
            assert!(!is_harmless(name, "x"), "{name}");
        }
        for value in ["http://me:hidden@proxy:3128", "a,https://token@host/x"] {
            assert!(!is_harmless("HTTPS_PROXY", value), "{value}");
        }
    }

    #[test]
    fn what_a_gpu_and_a_python_need_passes() {
        for name in [
            "PATH",
            "HOME",
            "LC_ALL",
            "PYTHONPATH",
            "CONDA_PREFIX",
            "LD_LIBRARY_PATH",
            "LD_PRELOAD",
            "CUDA_VISIBLE_DEVICES",
            "NVIDIA_VISIBLE_DEVICES",
            "HIP_VISIBLE_DEVICES",
            "HSA_OVERRIDE_GFX_VERSION",
            "PYTORCH_CUDA_ALLOC_CONF",
            "TORCHINDUCTOR_CACHE_DIR",
            "TRITON_CACHE_DIR",
            "OMP_NUM_THREADS",
            "HF_HOME",
            "HF_HUB_OFFLINE",
            "XDG_CACHE_HOME",
            "https_proxy",
            "no_proxy",
            "COMFYUI_PATH",
            "MALLOC_ARENA_MAX",
        ] {
            assert!(is_harmless(name, "/x/y@z"), "{name}");
        }
        assert!(is_harmless("http_proxy", "http://proxy:3128/a@b"));
    }
}
