//! One block as an IPFS trustless gateway answers it: which form is asked for, whether the caller has it, which part of it.
//!
//! The rules are those of the Trustless Gateway Specification (specs.ipfs.tech): raw blocks and CAR streams, nothing
//! deserialized, no path below an identifier. **Invariant:** the bytes handed in here were hashed when they were read; nothing else leaves.

use bytes::Bytes;
use cid::Cid;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{
    super::{answer, body::Body, fault::Fault, ranges, route::Request},
    archive,
};

/// The media type of a CAR stream, without its parameters.
const CAR: &str = "application/vnd.ipld.car";
/// The one that we write.
const CAR_V1: HeaderValue = HeaderValue::from_static("application/vnd.ipld.car; version=1; order=dfs; dups=n");
/// The media type of a raw block.
const RAW: &str = "application/vnd.ipld.raw";
/// The identity CID of no bytes at all, with which clients ask whether this is a gateway.
pub(super) const PROBE: &str = "bafkqaaa";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The block's bytes.
    Raw,
    /// A content-addressed archive, version 1.
    Car,
}

impl Form {
    /// By `format=`, which goes before `Accept`; in there by what is named first.
    pub(super) fn asked(request: &Request) -> Result<Self, Fault> {
        match request.parameters.last("format") {
            Some("raw") => return Ok(Self::Raw),
            Some("car") => return Self::car(request.parameters.last("car-version")),
            Some(_) => return Err(refused()),
            None => {}
        }
        let values = request.headers.get_all(header::ACCEPT).iter();
        let ranges: Vec<_> = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        let mut named_another = false;
        for range in ranges {
            let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
            let media_type = parts.next().unwrap_or_default();
            let parameters: Vec<_> = parts.collect();
            // q=0, q=0.000: not that.
            if parameters.iter().any(|part| part.trim_end_matches(['0', '.']) == "q=") {
                continue;
            }
            let version = parameters.iter().find_map(|part| part.strip_prefix("version="));
            match media_type.as_str() {
                RAW => return Ok(Self::Raw),
                CAR if version.is_none_or(|version| version == "1") => return Ok(Self::Car),
                "*/*" | "application/*" | "" => {}
                _ => named_another = true,
            }
        }
        if named_another {
            return Err(refused());
        }
        Err(Fault::invalid(
            "say in which form: ?format=raw or ?format=car, or an Accept header of application/vnd.ipld.raw or \
             application/vnd.ipld.car",
        ))
    }

    fn car(version: Option<&str>) -> Result<Self, Fault> {
        match version {
            None | Some("1") => Ok(Self::Car),
            Some(_) => Err(Fault::not_acceptable("only CAR version 1 is written here")),
        }
    }

    const fn ending(self) -> &'static str {
        match self {
            Self::Raw => "bin",
            Self::Car => "car",
        }
    }

    fn etag(self, cid: &Cid, part: &Part) -> String {
        match (self, part) {
            (Self::Raw, _) => format!("\"{cid}.raw\""),
            (Self::Car, Part::Block(_)) => format!("\"{cid}.car\""),
            (Self::Car, Part::Archive(_, mark)) => format!("\"{cid}.car{mark}\""),
        }
    }
}

fn refused() -> Fault {
    Fault::not_acceptable("only raw blocks and CAR version 1 are served: nothing is deserialized here")
}

/// What is answered with.
#[derive(Debug)]
pub(super) enum Part {
    /// One block.
    Block(Bytes),
    /// An archive, and what tells it from others under the same identifier.
    Archive(Body, String),
}

/// Whether the caller wants what is here already, or nothing; what a fog node has, it has here.
pub(super) fn wants_only_cached(headers: &HeaderMap) -> bool {
    let values = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("only-if-cached"))
}

/// The answer with this block: all of it, a part, or that the caller has it.
pub(super) fn answered(request: &Request, form: Form, cid: &Cid, part: Part) -> Result<Response<Body>, Fault> {
    let etag = form.etag(cid, &part);
    let text = |name| {
        request
            .headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let has_it = text(header::IF_NONE_MATCH).is_some_and(|tags| {
        tags.split(',')
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| tag == "*" || tag == etag)
    });
    let mut response = if has_it {
        let mut response = Response::new(Body::from(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        match (form, part) {
            (_, Part::Archive(archive, _)) => answer::bytes(StatusCode::OK, CAR_V1, archive),
            (Form::Car, Part::Block(block)) => answer::bytes(StatusCode::OK, CAR_V1, archive::of_one(cid, &block)),
            (Form::Raw, Part::Block(block)) => {
                let is_meant = text(header::IF_RANGE).is_none_or(|tag| tag == etag);
                ranged(text(header::RANGE).filter(|_| is_meant), block)?
            }
        }
    };
    let ascii = |text: String| HeaderValue::try_from(text).expect("identifiers are letters and digits");
    let headers = response.headers_mut();
    headers.insert(header::ETAG, ascii(etag));
    // A content identifier never names other bytes; only the holder's own client may keep them.
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, max-age=31536000, immutable"),
    );
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    let ending = form.ending();
    headers.insert(
        header::CONTENT_DISPOSITION,
        ascii(format!("attachment; filename=\"{cid}.{ending}\"")),
    );
    headers.insert("x-ipfs-path", ascii(format!("/ipfs/{cid}")));
    headers.insert("x-ipfs-roots", ascii(cid.to_string()));
    Ok(response)
}

/// A raw block, or the one range of it that is asked for. Several ranges, and units that are not bytes, are not understood:
/// all of it, then.
fn ranged(range: Option<&str>, block: Bytes) -> Result<Response<Body>, Fault> {
    let length = block.len();
    let mut response = match ranges::part(range, length as u64)? {
        None => answer::bytes(StatusCode::OK, answer::RAW, block),
        Some(part) => {
            let at = |place: u64| usize::try_from(place).expect("within a block");
            let (from, to) = (at(part.start), at(part.end));
            let mut response = answer::bytes(StatusCode::PARTIAL_CONTENT, answer::RAW, block.slice(from..to));
            let said = format!("bytes {from}-{}/{length}", to - 1);
            let said = HeaderValue::try_from(said).expect("digits and signs");
            response.headers_mut().insert(header::CONTENT_RANGE, said);
            response
        }
    };
    response
        .headers_mut()
        .insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_it_says() {
        let block = Bytes::from_static(b"0123456789");
        let of = |range: &str| {
            let answer = ranged(Some(range), block.clone())?;
            Ok::<_, Fault>((answer.status().as_u16(), answer.body().in_memory().cloned()))
        };
        for (range, status, bytes) in [
            ("bytes=2-4", 206, "234"),
            ("bytes=7-", 206, "789"),
            ("bytes=-3", 206, "789"),
            ("bytes=-30", 206, "0123456789"),
            ("bytes=0-99", 206, "0123456789"),
            ("bytes=9-9", 206, "9"),
            ("bytes=0-1,3-4", 200, "0123456789"),
            ("bytes=4-2", 200, "0123456789"),
            ("bytes=-", 200, "0123456789"),
            ("bytes=+1-2", 200, "0123456789"),
            ("lines=1-2", 200, "0123456789"),
        ] {
            assert_eq!(
                of(range).expect(range),
                (status, Some(Bytes::from_static(bytes.as_bytes()))),
                "{range}"
            );
        }
        for range in ["bytes=10-", "bytes=-0", "bytes=10-11"] {
            assert_eq!(of(range).expect_err(range).status().as_u16(), 416);
        }
    }
}
