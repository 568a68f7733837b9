//! Which engine carries a flow: the first on the list that does not decline.

use std::fmt;
use std::str::FromStr;

use super::copy::Copy;
use super::sockmap::Sockmap;
use super::splice::Splice;
use super::{End, Engine, Pair, Tier};

/// What the operator asked for (`engine`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The engine that the benchmarks favour (docs/benchmarks.md), then the ones below it.
    #[default]
    Auto,
    /// This one first; `copy` still stands beneath it.
    Only(Tier),
}

impl FromStr for Choice {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "copy" => Ok(Self::Only(Tier::Copy)),
            "splice" => Ok(Self::Only(Tier::Splice)),
            "sockmap" => Ok(Self::Only(Tier::Sockmap)),
            _ => Err("is no engine; one of auto, splice, sockmap, copy"),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(tier) => f.write_str(tier.name()),
        }
    }
}

/// All engines and the order to try them in.
#[derive(Default)]
pub(crate) struct Ladder {
    /// Loaded at the start, if it was asked for.
    sockmap: Option<Sockmap>,
    splice: Splice,
    copy: Copy,
}

impl Choice {
    fn wants(self, tier: Tier) -> bool {
        self.order().contains(&tier)
    }

    /// The engines to try, best first; `copy`, which never declines, is the last.
    pub const fn order(self) -> &'static [Tier] {
        match self {
            Self::Auto | Self::Only(Tier::Splice) => &[Tier::Splice, Tier::Copy],
            Self::Only(Tier::Sockmap) => &[Tier::Sockmap, Tier::Splice, Tier::Copy],
            Self::Only(Tier::Copy) => &[Tier::Copy],
        }
    }
}

impl Ladder {
    /// With the engine that needs the kernel's help.
    pub(crate) fn with_sockmap(sockmap: Sockmap) -> Self {
        Self { sockmap: Some(sockmap), ..Self::default() }
    }

    /// Whether it can do what a configuration asks for.
    pub(crate) fn offers(&self, choice: Choice) -> bool {
        !choice.wants(Tier::Sockmap) || self.sockmap.is_some()
    }

    /// Carries a pair to its end. Tells `declined` which engine handed it back, and why.
    pub(crate) async fn carry(
        &self,
        choice: Choice,
        mut pair: Pair,
        declined: impl Fn(Tier, &'static str),
    ) -> End {
        if let Some(sockmap) = self.sockmap.as_ref().filter(|_| choice.wants(Tier::Sockmap)) {
            match sockmap.carry(pair).await {
                Ok(end) => return end,
                Err(back) => {
                    declined(Tier::Sockmap, back.reason);
                    pair = back.pair;
                }
            }
        }
        if choice.wants(Tier::Splice) {
            match self.splice.carry(pair).await {
                Ok(end) => return end,
                Err(back) => {
                    declined(Tier::Splice, back.reason);
                    pair = back.pair;
                }
            }
        }
        let Ok(end) = self.copy.carry(pair).await;
        end
    }
}
