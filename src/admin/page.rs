//! The page's own files: part of the program, so that they fit it.

use std::sync::Arc;

use axum::{
    Router,
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};

use super::AdminState;

/// Scripts and styles are files of ours, never part of a page; pictures are ours too.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Where they are asked for.
pub(super) fn routes() -> Router<Arc<AdminState>> {
    let files: [(_, _, &'static str); 9] = [
        ("/", HTML, include_str!("page/index.html")),
        ("/page.css", CSS, include_str!("page/page.css")),
        ("/page.js", JAVASCRIPT, include_str!("page/page.js")),
        ("/hand.js", JAVASCRIPT, include_str!("page/hand.js")),
        ("/ended.js", JAVASCRIPT, include_str!("page/ended.js")),
        ("/stages.js", JAVASCRIPT, include_str!("page/stages.js")),
        ("/elements.js", JAVASCRIPT, include_str!("page/elements.js")),
        ("/words.js", JAVASCRIPT, include_str!("page/words.js")),
        ("/icon.svg", SVG, include_str!("page/icon.svg")),
    ];
    files.into_iter().fold(Router::new(), |routes, (path, content_type, text)| {
        routes.route(path, get(async move || file(content_type, text)))
    })
}

fn file(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    // Another version may answer next time.
    let headers =
        [(CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "no-cache")];
    (headers, text)
}
