//! Whose records an address lies among: under `store.uri` each job has a folder of its name.

use crate::{JobId, ObjectUri};

/// Whether `uri` lies in another job's folder under `base`, or could: job ids are chosen by publishers. What a prefix
/// at `base` or under it opens, the operator has chosen to open.
#[must_use]
pub fn is_anothers(uri: &ObjectUri, base: &ObjectUri, own: &JobId, opened: &[String]) -> bool {
    let Some(way) = uri.within(base) else { return false };
    let first = way.split('/').next().unwrap_or_default();
    let is_opened = |prefix: &&String| {
        prefix.parse().is_ok_and(|prefix: ObjectUri| prefix.within(base).is_some())
            && uri.is_beneath(std::slice::from_ref(prefix))
    };
    first != own.as_str() && first.parse::<JobId>().is_ok() && !opened.iter().any(|prefix| is_opened(&prefix))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_job_keeps_out_of_others_folders() {
        let own: JobId = "own".parse().unwrap();
        for base in ["s3://bucket/jobs", "s3://bucket", "file:///store"] {
            let base: ObjectUri = base.parse().unwrap();
            let anothers = |uri: &str, opened: &[&str]| {
                let opened: Vec<_> = opened.iter().map(|way| format!("{base}{way}")).collect();
                is_anothers(&format!("{base}{uri}").parse().unwrap(), &base, &own, &opened)
            };
            for uri in ["/other", "/other/1/outputs/x.png", "/own2/x", "/other/own", "/1"] {
                assert!(anothers(uri, &[]), "{base}{uri}");
                assert!(anothers(uri, &["/elsewhere/"]), "{base}{uri}");
                assert!(
                    !anothers(uri, &["/"]) && !anothers(uri, &["/other/", "/own2/", "/1"]),
                    "{base}{uri}"
                );
            }
            for uri in ["", "/own", "/own/inputs/x", "/_renders/x", "/-x"] {
                assert!(!anothers(uri, &[]), "{base}{uri}");
            }
        }
        let (base, elsewhere): (ObjectUri, ObjectUri) =
            ("s3://bucket/jobs".parse().unwrap(), "s3://bucket/jobs2/other".parse().unwrap());
        assert!(!is_anothers(&elsewhere, &base, &own, &[]));
        // A prefix above the place of results says nothing about it.
        let other = "s3://bucket/jobs/other".parse().unwrap();
        assert!(is_anothers(&other, &base, &own, &["s3://".to_owned(), "s3://bucket/".to_owned()]));
    }
}
