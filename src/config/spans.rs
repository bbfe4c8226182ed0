//! `spans`: where client spans are reported.

use super::choices::SpanFormat;
use super::error::cut;
use super::read::{Accepted, Scalar, object};
use super::words::{Words, one_of};
use serde::de::{Deserialize, Deserializer, Error};

/// Where client spans are reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanReports {
    /// `cluster`: the Envoy cluster of the collector.
    pub cluster: String,
    /// `format`
    pub format: SpanFormat,
    /// `path`
    pub path: String,
    /// `authority`
    pub authority: String,
}

/// `spans`; `None` to report none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(pub(super) Option<SpanReports>);

const ALLOWED: &str =
    "an object with \"cluster\" and \"format\", and perhaps \"path\" and \"authority\"";

impl<'de> Deserialize<'de> for Spans {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const TEXTS: [&str; 3] = ["cluster", "path", "authority"];
        let mut texts: [Option<String>; 3] = Default::default();
        let mut format = None;
        let mut is_empty = true;
        let mut accept = |name: &str, value: Scalar<'_>| -> Accepted {
            is_empty = false;
            if name == "format" {
                let words = Words::of::<SpanFormat>();
                let wrong = || Some(format!("`format` is {words}"));
                format = Some(one_of(value).ok_or_else(wrong)?);
                return Ok(());
            }
            let mut places = texts.iter_mut().zip(TEXTS);
            let Some((place, _)) = places.find(|(_, known)| *known == name) else {
                return Err(Some(format!("no key of it is called `{}`", cut(name))));
            };
            let Scalar::Text(text) = value else {
                return Err(None);
            };
            let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
            let is_long = text.is_empty() || text.len() > 255;
            if is_long || !is_plain || (name == "path" && !text.starts_with('/')) {
                return Err(None);
            }
            *place = Some(text.to_string());
            Ok(())
        };
        let value = "1 to 255 visible characters of ASCII, a path with `/` first";
        object(deserializer, &ALLOWED, &value, &mut accept)?;
        if is_empty {
            return Ok(Self(None));
        }
        let [cluster, path, authority] = texts;
        let (Some(cluster), Some(format)) = (cluster, format) else {
            return Err(D::Error::custom(format_args!(
                "found one of them alone, allowed: {ALLOWED}"
            )));
        };
        let by_format = match format {
            SpanFormat::Zipkin => "/api/v2/spans",
            SpanFormat::Otlp => "/v1/traces",
        };
        Ok(Self(Some(SpanReports {
            path: path.unwrap_or_else(|| by_format.to_string()),
            authority: authority.unwrap_or_else(|| host_of(&cluster)),
            cluster,
            format,
        })))
    }
}

/// The host of a cluster. Istio's names are `outbound|PORT|SUBSET|HOST`.
fn host_of(cluster: &str) -> String {
    let host = cluster.rsplit_once('|').map(|(_, host)| host);
    host.unwrap_or(cluster).to_string()
}
