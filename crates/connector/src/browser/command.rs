//! Chromium's command line and environment.

use std::{net::Ipv6Addr, path::Path, process::Stdio};

use tokio::process::Command;
use url::Url;

use crate::config::BrowserConfig;

/// `program` headless with `profile` as its only folder, able to reach `server` and nothing else.
pub(super) fn command(
    program: &Path,
    config: &BrowserConfig,
    server: &Url,
    profile: &Path,
    sandbox: bool,
) -> Command {
    let mut command = Command::new(program);
    command
        .args([
            "--headless",
            "--enable-webgl",
            "--disable-gpu",
            "--window-size=1280,720",
            "--no-first-run",
            "--no-default-browser-check",
            "--no-proxy-server",
            "--no-pings",
            "--mute-audio",
            "--password-store=basic",
            "--use-mock-keychain",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-client-side-phishing-detection",
            "--disable-default-apps",
            "--disable-domain-reliability",
            "--disable-extensions",
            "--disable-quic",
            "--disable-sync",
            // Its handler would leave our process group.
            "--disable-breakpad",
            "--disable-crash-reporter",
            // Containers have 64 MiB of /dev/shm; a full one crashes the page.
            "--disable-dev-shm-usage",
            // A page that nobody looks at must not be slowed down.
            "--disable-background-timer-throttling",
            "--disable-backgrounding-occluded-windows",
            "--disable-renderer-backgrounding",
            // The last two keep processes and pages ready for navigations that never come.
            "--disable-features=Translate,MediaRouter,OptimizationHints,HttpsUpgrades,\
             SpareRendererForSitePerProcess,BackForwardCache",
            // Every page is opened by DevTools: a window's own would only cost a process.
            "--no-startup-window",
        ])
        .arg(format!("--host-resolver-rules={}", resolver_rules(server)))
        .arg(format!("--user-data-dir={}", profile.display()));
    if !sandbox {
        command.arg("--no-sandbox");
    }
    command
        .args(&config.args)
        // The worker's credentials must not be readable in /proc/<pid>/environ of a browser.
        .env_clear()
        .envs(
            ["PATH", "LD_LIBRARY_PATH", "TZ"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        .env("LANG", "C.UTF-8")
        .env("DBUS_SESSION_BUS_ADDRESS", "disabled:")
        .envs(
            ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"]
                .map(|name| (name, profile)),
        )
        .current_dir(profile)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// No name and no address is found but the server's own, on its own port. This holds for every
/// page, worker and websocket, unlike interception by DevTools, which a new target can escape.
fn resolver_rules(server: &Url) -> String {
    let port = server.port_or_known_default().unwrap_or(80);
    let host = server.host_str().unwrap_or("127.0.0.1");
    // A URL writes [::1], the rules match it written either way, by Chromium's version.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<Ipv6Addr>() {
        Ok(_) => format!("MAP [{bare}]:{port} [{bare}]:{port},MAP * ~NOTFOUND,EXCLUDE {bare}"),
        Err(_) => format!("MAP {host}:{port} {host}:{port},MAP * ~NOTFOUND"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_the_servers_port_is_found() {
        let rules = |url: &str| resolver_rules(&url.parse().unwrap());
        assert_eq!(rules("http://127.0.0.1:8188/"), "MAP 127.0.0.1:8188 127.0.0.1:8188,MAP * ~NOTFOUND");
        assert_eq!(
            rules("https://comfy.example/x"),
            "MAP comfy.example:443 comfy.example:443,MAP * ~NOTFOUND"
        );
        assert!(rules("http://[::1]:8188/").starts_with("MAP [::1]:8188 [::1]:8188,MAP * ~NOTFOUND"));
    }

    #[test]
    fn the_workers_environment_stays_with_the_worker() {
        let config = BrowserConfig {
            executable: None,
            args: vec!["--lang=de".into()],
            convert_timeout: Duration::from_secs(1),
            install: None,
        };
        let server = "http://127.0.0.1:1/".parse().unwrap();
        let command = command(Path::new("/chromium"), &config, &server, Path::new("/profile"), true);
        let kept: Vec<_> = command.as_std().get_envs().filter_map(|(name, _)| name.to_str()).collect();
        let allowed = [
            "DBUS_SESSION_BUS_ADDRESS",
            "HOME",
            "LANG",
            "LD_LIBRARY_PATH",
            "PATH",
            "TMPDIR",
            "TZ",
            "XDG_CACHE_HOME",
            "XDG_CONFIG_HOME",
            "XDG_RUNTIME_DIR",
        ];
        assert!(kept.iter().all(|name| allowed.contains(name)), "{kept:?}");
        let args: Vec<_> = command.as_std().get_args().filter_map(|arg| arg.to_str()).collect();
        assert!(args.contains(&"--lang=de") && !args.contains(&"--no-sandbox"));
    }
}
