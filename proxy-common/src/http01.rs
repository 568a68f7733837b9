//! Requests of HTTP-01 validations (RFC 8555 §8.3).

/// Folder of the resources that a CA requests.
pub const CHALLENGE_FOLDER: &str = "/.well-known/acme-challenge";

/// Maximum length of a token in bytes. CAs use some 43.
pub const MAX_TOKEN_LEN: usize = 256;

/// Kind of the resource that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'p> {
    /// The key authorization for this token.
    KeyAuthorization(&'p str),
    /// Something in [`CHALLENGE_FOLDER`] that no CA requests, or the folder itself.
    InvalidToken,
    /// A resource outside of [`CHALLENGE_FOLDER`].
    Other,
}

/// Classifies the target of a request: its path, with the query if there is one.
///
/// A token has only characters of the base64url alphabet (RFC 8555 §8.3), so a valid one holds no `/`, `.`, `%`
/// or `?`: whichever server gets the path, it finds no other resource.
pub fn classify_target(target: &str) -> Resource<'_> {
    let Some(rest) = target.strip_prefix(CHALLENGE_FOLDER) else { return Resource::Other };
    match rest.strip_prefix('/') {
        Some(token) if is_token(token) => Resource::KeyAuthorization(token),
        Some(_) => Resource::InvalidToken,
        None if rest.is_empty() || rest.starts_with('?') => Resource::InvalidToken,
        None => Resource::Other,
    }
}

fn is_token(text: &str) -> bool {
    let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_TOKEN_LEN).contains(&text.len()) && text.bytes().all(is_base64url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_token_is_a_key_authorization() {
        let longest = "a".repeat(MAX_TOKEN_LEN);
        for token in ["LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0", "-_", &longest] {
            let target = format!("{CHALLENGE_FOLDER}/{token}");
            assert_eq!(classify_target(&target), Resource::KeyAuthorization(token));
        }
        for rest in [
            "",
            "/",
            "?a=b",
            "/a/b",
            "/../../private",
            "/..",
            "/%2e%2e/x",
            "/a?b=c",
            "/a.b",
            "/a b",
            "/a\\b",
            "/ä",
            &format!("/a{longest}"),
        ] {
            let target = format!("{CHALLENGE_FOLDER}{rest}");
            assert_eq!(classify_target(&target), Resource::InvalidToken, "{target}");
        }
        for other in ["/", "*", "", "/x", "/.well-known/acme-challenges/a", "/.well-known/"] {
            assert_eq!(classify_target(other), Resource::Other, "{other}");
        }
    }
}
