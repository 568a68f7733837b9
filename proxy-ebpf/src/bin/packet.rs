//! BPF programs of the packet engine.
//!
//! `sni_in` gets the packets that arrive. Two sockets carry a pending flow. When the back end answers,
//! the program reads both sockets. If they hold no data, the program takes the flow over: it translates
//! the flow's packets from one TCP connection to the other. `sni_out` gets the packets that this host
//! sends, and drops those that the two sockets of such a flow send. `sni_xdp` translates packets of
//! offloaded flows in the driver (XDP).
//!
//! `sni_ctl` executes commands of the agent.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

#[path = "../packet/mod.rs"]
mod packet;

use packet::{tc, xdp};

#[classifier]
fn sni_in(ctx: TcContext) -> i32 {
    tc::ingress(&ctx)
}

#[classifier]
fn sni_out(ctx: TcContext) -> i32 {
    tc::egress(&ctx)
}

#[classifier]
fn sni_ctl(ctx: TcContext) -> i32 {
    tc::control(&ctx)
}

#[xdp(frags)]
fn sni_xdp(ctx: XdpContext) -> u32 {
    xdp::receive(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program that can get here.
    loop {}
}
