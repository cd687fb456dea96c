//! The CUDA kernels as the host sees them: their modules, parameters, and how a launch follows from the parameters.
//!
//! The sources are in the folder `kernels`. A module is one source file, compiled with the macros that [`Module::macros`]
//! lists; the kernels of products are a module for each weight type, so that only the types of a model are compiled for
//! the device. Every kernel takes one of the structs of this file by value, the same as in `params.h`. All addresses are
//! device addresses. Positions, page tables and adapters lie in device memory, so a recorded launch can be repeated with
//! the same parameters for other positions.
//!
//! Results have the bits of the CPU: `fewbit_quant::dot`, `fewbit_kernels::math` and the modules of `fewbit_kernels` define
//! them. Kernels do not check their arguments: addresses must be those of buffers that are as large as the fields say.

use fewbit_kernels::{GateFunction, PAGE, RopeStyle};
use fewbit_model::KvType;
use fewbit_quant::format::{ForQuantized, Quantized};
use fewbit_quant::{ActivationKind, TensorType};

/// Rows of a panel of weights.
pub const PANEL_ROWS: usize = 16;

/// Rows of a batch from which on products run in tiles, with tensor cores.
pub const TILE_FROM: u32 = 9;

/// Rows of a batch in a tile of a product.
pub const TILE_ROWS: u32 = 64;

/// Threads of a block, in all kernels but `product_tile`.
const THREADS: u32 = 256;

/// A device address, or 0 for none.
pub type Address = u64;

/// A source file with the macros that select what it contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Module {
    /// Norms, quantization and everything else that is done for each element.
    Rows,
    /// A cache of this type, and attention over it.
    Attention(KvType),
    /// Routing to experts.
    Experts,
    /// Adapters.
    Adapters,
    /// Products with weights of this type.
    Product(TensorType),
    /// What measures the limits of a device.
    Ceilings,
}

impl Module {
    /// All modules: what must be compiled.
    pub fn all() -> Vec<Self> {
        let mut modules = vec![Self::Rows, Self::Experts, Self::Adapters, Self::Ceilings];
        modules.extend(KvType::ALL.map(Self::Attention));
        let types = TensorType::all().filter(|&ty| ActivationKind::of(ty).is_some() && kernel_type(ty) == ty);
        modules.extend(types.map(Self::Product));
        modules
    }

    /// The module of products with a weight type. Types with the same layout in memory share one.
    pub fn of_product(ty: TensorType) -> Self {
        Self::Product(kernel_type(ty))
    }

    /// A name for files: `rows`, `product_Q4_K`.
    pub fn name(&self) -> String {
        match self {
            Self::Product(ty) => format!("product_{ty}"),
            Self::Attention(kv) => format!("attention_{kv}"),
            _ => self.file().trim_end_matches(".cu").to_owned(),
        }
    }

    /// The name of its file in the folder `kernels`.
    pub fn file(&self) -> &'static str {
        match self {
            Self::Rows => "rows.cu",
            Self::Attention(_) => "attention.cu",
            Self::Experts => "experts.cu",
            Self::Adapters => "adapters.cu",
            Self::Product(_) => "product.cu",
            Self::Ceilings => "ceilings.cu",
        }
    }

    /// Macros to define for the compiler: names and values.
    pub fn macros(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Product(ty) => vec![("TYPE", ty.name().to_owned())],
            Self::Attention(kv) => vec![("KV", kv.name().to_owned())],
            _ => Vec::new(),
        }
    }
}

/// The files of the folder `kernels`, by name.
pub const SOURCES: &[(&str, &str)] = &[
    ("adapters.cu", include_str!("kernels/adapters.cu")),
    ("attention.cu", include_str!("kernels/attention.cu")),
    ("ceilings.cu", include_str!("kernels/ceilings.cu")),
    ("device.h", include_str!("kernels/device.h")),
    ("experts.cu", include_str!("kernels/experts.cu")),
    ("functions.h", include_str!("kernels/functions.h")),
    ("params.h", include_str!("kernels/params.h")),
    ("product.cu", include_str!("kernels/product.cu")),
    ("quantize.h", include_str!("kernels/quantize.h")),
    ("rows.cu", include_str!("kernels/rows.cu")),
    ("types.h", include_str!("kernels/types.h")),
];

/// The type whose kernels compute products with `ty`.
fn kernel_type(ty: TensorType) -> TensorType {
    struct Kernel;
    impl ForQuantized for Kernel {
        type Out = TensorType;
        fn call<T: Quantized>(self) -> TensorType {
            <T::Kernel as Quantized>::TYPE
        }
    }
    ty.dispatch(Kernel).unwrap_or(ty)
}

/// A kernel and the size of its grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Where the kernel is.
    pub module: Module,
    /// Its name there.
    pub name: String,
    /// Blocks in each dimension; none of them is 0.
    pub grid: [u32; 3],
    /// Threads of a block, in one dimension.
    pub block: u32,
    /// Bytes of dynamic shared memory: at most 48 KiB.
    pub shared: u32,
}

impl Launch {
    fn new(module: Module, name: impl Into<String>, [x, y, z]: [u32; 3]) -> Self {
        Self { module, name: name.into(), grid: [x, y, z], block: THREADS, shared: 0 }
    }
}

/// Rows as signed bytes under one scale for each block of 32 or 256 columns. With two planes, the rows of the second
/// plane follow those of the first.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Form {
    /// `[n_rows][n_cols]` bytes; 0 where this form is not wanted.
    pub codes: Address,
    /// `[n_rows][n_cols / block]` f32.
    pub scales: Address,
    /// `[n_rows][n_cols / 32]`, in blocks of 256 `[n_rows][n_cols / 16]`, i32: sums of codes.
    pub sums: Address,
}

/// What a kernel must know of the position of a row of the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Row {
    /// The position.
    pub position: u32,
    /// The first page that the sequence still has.
    pub first_page: u32,
    /// The index of that page's slot in the table of slots. Those of later pages follow.
    pub slots_at: u32,
    /// Rows of one sequence have the same number, and consecutive positions.
    pub sequence: u32,
}

/// The expert of a route, and its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Route {
    /// The expert.
    pub expert: u32,
    /// The weight of its output.
    pub weight: f32,
}

/// A row of the batch to which an adapter is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AdaptedRow {
    /// The row.
    pub row: u32,
    /// Its factor.
    pub scale: f32,
}

/// The norm of every part of every row, then the quantized forms of the rows.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct NormParams {
    /// `[n_rows][n_parts][part]` f32.
    pub from: Address,
    /// `[part]` f32.
    pub weight: Address,
    /// As `from`, and may be the same.
    pub to: Address,
    /// The form of `to` in blocks of 32, if there is one part.
    pub q32: Form,
    /// The form of `to` in blocks of 256, if there is one part.
    pub q256: Form,
    /// Rows.
    pub n_rows: u32,
    /// Parts of a row.
    pub n_parts: u32,
    /// Elements of a part.
    pub part: u32,
    /// Planes of the forms: 1 or 2.
    pub planes: u32,
    /// The epsilon of the norm.
    pub eps: f32,
    /// 1 if the mean is subtracted first.
    pub has_mean: u32,
}

impl NormParams {
    /// The launch.
    pub fn launch(&self) -> Launch {
        Launch::new(Module::Rows, "rms_norm", [self.n_rows, self.n_parts, 1])
    }
}

/// Quantizes rows.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct QuantizeParams {
    /// `[n_rows][n_cols]` f32.
    pub from: Address,
    /// The result.
    pub to: Form,
    /// Rows.
    pub n_rows: u32,
    /// Columns.
    pub n_cols: u32,
    /// 1 or 2.
    pub planes: u32,
    /// 0.
    pub unused: u32,
}

impl QuantizeParams {
    /// The launch, for blocks of this kind.
    pub fn launch(&self, kind: ActivationKind) -> Launch {
        let name = format!("quantize_{}", kind.block_elems());
        // A warp takes 256 columns.
        Launch::new(Module::Rows, name, [self.n_rows, self.n_cols.div_ceil(2048), 1])
    }
}

/// `gate = f(gate) * up`, then the quantized forms of the result.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct GateParams {
    /// `[n_rows][n_cols]` f32, changed in place.
    pub gate: Address,
    /// The same shape.
    pub up: Address,
    /// The form of the result in blocks of 32, in one plane.
    pub q32: Form,
    /// The form of the result in blocks of 256, in one plane.
    pub q256: Form,
    /// Rows.
    pub n_rows: u32,
    /// Columns.
    pub n_cols: u32,
}

impl GateParams {
    /// The launch.
    pub fn launch(&self, function: GateFunction) -> Launch {
        let name = match function {
            GateFunction::Silu => "gate_silu",
            GateFunction::GeluTanh => "gate_gelu",
            GateFunction::ClampedSilu => "gate_clamped",
        };
        Launch::new(Module::Rows, name, [self.n_rows, self.n_cols.div_ceil(2048), 1])
    }
}

/// An operation on each element of some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowsOp {
    /// `to += other`, a vector.
    Bias,
    /// `to *= other`, a factor for each row.
    Temper,
    /// `to += a * other`, as fused multiply-adds.
    Add,
    /// `to *= a`.
    Scale,
    /// `to = a * tanh(to * b)`.
    Softcap,
    /// `to = max(to, 0)^2`.
    SquaredRelu,
}

/// Parameters of all [`RowsOp`]s.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowsParams {
    /// `[n_rows][n_cols]` f32, changed in place.
    pub to: Address,
    /// `[n_cols]`, `[n_rows]`, or as `to`.
    pub other: Address,
    /// Rows.
    pub n_rows: u32,
    /// Columns.
    pub n_cols: u32,
    /// The factor, or the cap.
    pub a: f32,
    /// `1 / cap`.
    pub b: f32,
}

impl RowsParams {
    /// The launch.
    pub fn launch(&self, op: RowsOp) -> Launch {
        let name = match op {
            RowsOp::Bias => "bias",
            RowsOp::Temper => "temper",
            RowsOp::Add => "add",
            RowsOp::Scale => "scale",
            RowsOp::Softcap => "softcap",
            RowsOp::SquaredRelu => "squared_relu",
        };
        Launch::new(Module::Rows, name, [self.n_rows, self.n_cols.div_ceil(THREADS), 1])
    }
}

/// Rotary position embedding of every head of every row.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RotateParams {
    /// `[n_rows][n_cols / head_dim][head_dim]` f32, changed in place.
    pub to: Address,
    /// `[n_rows][half]` f32.
    pub cos: Address,
    /// `[n_rows][half]` f32.
    pub sin: Address,
    /// Rows.
    pub n_rows: u32,
    /// Elements of all heads.
    pub n_cols: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Pairs of a head that are rotated: at most half of `head_dim`.
    pub half: u32,
}

impl RotateParams {
    /// The launch.
    pub fn launch(&self, style: RopeStyle) -> Launch {
        let name = match style {
            RopeStyle::Interleaved => "rotate_interleaved",
            RopeStyle::HalfSplit => "rotate_half_split",
        };
        let pairs = self.n_cols / self.head_dim * self.half;
        Launch::new(Module::Rows, name, [self.n_rows, pairs.div_ceil(THREADS).max(1), 1])
    }
}

/// A matrix product: `to = w x`, or `to += w x`.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ProductParams {
    /// The panels of the matrix, as `Matrix::panels` gives them; at a multiple of 16 bytes.
    pub weights: Address,
    /// The input of float weights: `[n_rows][n_cols]` f32.
    pub values: Address,
    /// The input of quantized weights.
    pub form: Form,
    /// `[n_rows][n_out]` f32.
    pub to: Address,
    /// Bytes of a panel.
    pub panel_bytes: u64,
    /// Bytes of its scales and minimums, before the codes.
    pub meta_bytes: u64,
    /// Rows of the input, in one plane.
    pub n_rows: u32,
    /// Columns of the matrix.
    pub n_cols: u32,
    /// Rows of the matrix.
    pub n_out: u32,
    /// Planes of the input that are used: 1 or 2.
    pub planes: u32,
    /// 1 if the product is added to `to`.
    pub adds: u32,
    /// 0.
    pub unused: u32,
}

impl ProductParams {
    /// The launch, for weights of this type.
    pub fn launch(&self, ty: TensorType) -> Launch {
        let module = Module::of_product(ty);
        let panels = self.n_out.div_ceil(PANEL_ROWS as u32);
        if self.n_rows >= TILE_FROM {
            return tile_launch(module, "product_tile", panels, self.n_rows.div_ceil(TILE_ROWS));
        }
        // All planes at once, if they are few: then weights are read once.
        let pairs = if ty.format().is_some() { self.n_rows * self.planes } else { self.n_rows };
        let at_once = if pairs < TILE_FROM { pairs } else { self.n_rows }.next_power_of_two();
        Launch::new(module, format!("product_{at_once}"), [panels, 1, 1])
    }
}

/// The launch of a product in tiles of four panels, in which each warp computes one; with float weights, of one panel.
fn tile_launch(module: Module, name: &str, panels: u32, tiles: u32) -> Launch {
    let is_float = matches!(module, Module::Product(ty) if ty.format().is_none());
    let (panels, block) = if is_float { (panels, THREADS) } else { (panels.div_ceil(4), 128) };
    Launch { block, ..Launch::new(module, name, [panels, tiles, 1]) }
}

/// For every route, a product with the matrix of its expert.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ExpertParams {
    /// The matrices of all experts, one after another; `to`: `[n_routes][n_out]`, `n_rows`: of the input, in one plane.
    pub product: ProductParams,
    /// `[n_routes]` [`Route`]s.
    pub routes: Address,
    /// What [`GroupParams`] made of the routes; only read by the launch in tiles.
    pub order: Address,
    /// The same.
    pub tiles: Address,
    /// Bytes of the matrix of an expert.
    pub expert_bytes: u64,
    /// Routes of the batch.
    pub n_routes: u32,
    /// How many routes, one after another, share a row of the input.
    pub routes_per_row: u32,
}

impl ExpertParams {
    /// The launch with a product for each route, which reads the weights of an expert for each of its routes.
    pub fn launch(&self, ty: TensorType) -> Launch {
        let panels = self.product.n_out.div_ceil(PANEL_ROWS as u32);
        Launch::new(Module::of_product(ty), "product_experts", [panels, self.n_routes, 1])
    }

    /// The launch in tiles of routes with the same expert, after [`GroupParams::launch`].
    pub fn launch_tiles(&self, ty: TensorType, n_experts: u32) -> Launch {
        let panels = self.product.n_out.div_ceil(PANEL_ROWS as u32);
        tile_launch(Module::of_product(ty), "product_experts_tile", panels, n_tiles(n_experts, self.n_routes))
    }
}

/// The most tiles that the routes of a batch make.
fn n_tiles(n_experts: u32, n_routes: u32) -> u32 {
    n_experts + n_routes / TILE_ROWS
}

/// Groups the routes of a batch by expert, for products in tiles.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct GroupParams {
    /// `[n_routes]` [`Route`]s.
    pub routes: Address,
    /// `[n_routes]` u32: routes in order of their experts.
    pub order: Address,
    /// [`tile_words`](Self::tile_words) u32.
    pub tiles: Address,
    /// `[2 * n_experts]` u32.
    pub scratch: Address,
    /// Routes of the batch.
    pub n_routes: u32,
    /// Experts.
    pub n_experts: u32,
}

impl GroupParams {
    /// The launch.
    pub fn launch(&self) -> Launch {
        Launch::new(Module::Experts, "group", [1, 1, 1])
    }

    /// The length of `tiles` in 32-bit words.
    pub fn tile_words(&self) -> usize {
        3 * n_tiles(self.n_experts, self.n_routes) as usize
    }
}

/// Chooses the experts of every row.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RouteParams {
    /// `[n_rows][n_experts]` f32; overwritten.
    pub scores: Address,
    /// What is added to choose experts, `[n_experts]` f32, or 0.
    pub bias: Address,
    /// `[n_rows][n_experts + n_groups]` f32: what experts are chosen by, then the sums of groups. With 0, experts are
    /// chosen by their probabilities.
    pub choices: Address,
    /// `[n_rows][n_used]` [`Route`]s.
    pub routes: Address,
    /// Rows.
    pub n_rows: u32,
    /// Experts.
    pub n_experts: u32,
    /// Experts that are used for a row.
    pub n_used: u32,
    /// 1 if weights are divided by their sum.
    pub is_normalized: u32,
    /// The factor of all weights.
    pub scale: f32,
    /// 1 if probabilities are the sigmoid of each score.
    pub is_sigmoid: u32,
    /// Groups of experts, or 0.
    pub n_groups: u32,
    /// Groups that are used for a row.
    pub n_groups_used: u32,
    /// How many of its best experts a group's sum is of.
    pub n_best: u32,
    /// 0.
    pub unused: u32,
}

impl RouteParams {
    /// The launch.
    pub fn launch(&self) -> Launch {
        Launch { block: 32, ..Launch::new(Module::Experts, "route", [self.n_rows, 1, 1]) }
    }
}

/// The rows of routes: with the bias of their expert, or the row of their token multiplied by their weight.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RoutedParams {
    /// Biases: `[n_experts][n_cols]` f32. Weights: `[n_routes / routes_per_row][n_cols]` f32.
    pub other: Address,
    /// `[n_routes]` [`Route`]s.
    pub routes: Address,
    /// `[n_routes][n_cols]` f32.
    pub to: Address,
    /// Routes.
    pub n_routes: u32,
    /// Columns.
    pub n_cols: u32,
    /// Routes of a token.
    pub routes_per_row: u32,
    /// 0.
    pub unused: u32,
}

impl RoutedParams {
    /// The launch of `to += bias` or of `to = weight * other`.
    pub fn launch(&self, is_bias: bool) -> Launch {
        let name = if is_bias { "bias_experts" } else { "weigh" };
        Launch::new(Module::Experts, name, [self.n_routes, self.n_cols.div_ceil(THREADS), 1])
    }
}

/// Sums the outputs of experts.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CombineParams {
    /// `[n_rows][n_used][n_cols]` f32.
    pub outputs: Address,
    /// `[n_rows][n_used]` [`Route`]s.
    pub routes: Address,
    /// The output of the shared expert, `[n_rows][n_cols]` f32, or 0.
    pub shared: Address,
    /// Its score, `[n_rows]` f32, or 0.
    pub shared_score: Address,
    /// `[n_rows][n_cols]` f32.
    pub to: Address,
    /// Rows.
    pub n_rows: u32,
    /// Columns.
    pub n_cols: u32,
    /// Experts that are used for a row.
    pub n_used: u32,
    /// 1 if outputs are multiplied by the weights of their routes.
    pub weighs: u32,
}

impl CombineParams {
    /// The launch.
    pub fn launch(&self) -> Launch {
        Launch::new(Module::Experts, "combine", [self.n_rows, self.n_cols.div_ceil(THREADS), 1])
    }
}

/// One factor of an adapter: `to = scale * (w x)`, or `to += w x`.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AdaptParams {
    /// `[n_out][n_in]` f32.
    pub w: Address,
    /// Down: the rows of the batch; up: `[n_rows][n_in]` f32.
    pub x: Address,
    /// `[n_rows]` [`AdaptedRow`]s.
    pub rows: Address,
    /// Down: `[n_rows][n_out]` f32; up: the rows of the batch.
    pub to: Address,
    /// Rows with this adapter.
    pub n_rows: u32,
    /// Length of an input.
    pub n_in: u32,
    /// Length of an output.
    pub n_out: u32,
    /// 0.
    pub unused: u32,
}

impl AdaptParams {
    /// The launch of the first factor (down) or of the second one.
    pub fn launch(&self, is_down: bool) -> Launch {
        let name = if is_down { "adapt_down" } else { "adapt_up" };
        Launch::new(Module::Adapters, name, [self.n_rows, self.n_out.div_ceil(PANEL_ROWS as u32), 1])
    }
}

/// Appends keys and values to the cache of a layer.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AppendParams {
    /// `[n_rows][n_kv_heads][head_dim]` f32.
    pub k: Address,
    /// The same shape.
    pub v: Address,
    /// `[n_rows]` [`Row`]s.
    pub rows: Address,
    /// Slots of pages, u32; see [`Row::slots_at`].
    pub slots: Address,
    /// The slots of the layer: a page each, keys before values.
    pub pool: Address,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Bytes of its keys.
    pub key_bytes: u64,
    /// Rows.
    pub n_rows: u32,
    /// Heads of keys and values.
    pub n_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// 0.
    pub unused: u32,
}

impl AppendParams {
    /// The launch, for a cache of this type.
    pub fn launch(&self, kv: KvType) -> Launch {
        // A warp takes a block of 32 elements of a head.
        let warps = self.n_kv_heads * self.head_dim.div_ceil(32);
        Launch::new(Module::Attention(kv), "append", [self.n_rows, warps.div_ceil(8), 1])
    }
}

/// Attention of the queries over the cache of a layer.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct AttendParams {
    /// `[n_rows][n_heads][head_dim]` f32.
    pub q: Address,
    /// `[n_rows]` [`Row`]s.
    pub rows: Address,
    /// Slots of pages, u32.
    pub slots: Address,
    /// The slots of the layer.
    pub pool: Address,
    /// The sinks of all heads, `[n_heads]` f32, or 0.
    pub sinks: Address,
    /// As `q`.
    pub to: Address,
    /// [`parts_len`](Self::parts_len) f32, or 0.
    pub parts: Address,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Bytes of its keys.
    pub key_bytes: u64,
    /// Rows.
    pub n_rows: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Heads of keys and values.
    pub n_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Query heads that a block takes at once; see [`tile`](Self::tile).
    pub heads: u32,
    /// Rows of the batch that a block takes at once.
    pub tokens: u32,
    /// The most keys that a query sees, its own included, or 0.
    pub window: u32,
    /// At least the most pages that a row of the batch sees, if each page has blocks of its own: for few rows with many
    /// pages, where `tokens` is 1. Otherwise 0, and a block computes one page after another.
    pub n_pages: u32,
    /// The factor of scores.
    pub scale: f32,
    /// The cap of scores, or 0.
    pub cap: f32,
    /// `1 / cap`, or 0.
    pub inverse_cap: f32,
    /// 1 if the window begins at the last multiple of its length.
    pub is_chunked: u32,
}

impl AttendParams {
    /// Sets `heads` and `tokens`: a block computes up to eight rows of queries of heads that share keys; more than one row
    /// of the batch only if there are many.
    pub fn tile(mut self) -> Self {
        let group = self.n_heads / self.n_kv_heads.max(1);
        // As many as fit into shared memory.
        let most = [8, 4, 2].into_iter().find(|&rows| self.shared(rows) <= 48 << 10).unwrap_or(1);
        self.heads = group.min(most);
        self.tokens = if self.n_rows >= TILE_FROM { most / self.heads } else { 1 };
        self
    }

    /// The length of `parts`.
    pub fn parts_len(&self) -> usize {
        self.n_rows as usize * self.n_heads as usize * self.n_pages as usize * (self.head_dim as usize + 2)
    }

    /// The launches: attention, and the merging of pages that have blocks of their own.
    pub fn launches(&self, kv: KvType) -> Vec<Launch> {
        let rows = (self.heads * self.tokens).next_power_of_two();
        let chunks = (self.n_heads / self.n_kv_heads).div_ceil(self.heads);
        let grid = [self.n_rows.div_ceil(self.tokens), self.n_kv_heads * chunks, self.n_pages.max(1)];
        let name = format!("attend_{rows}");
        let attend = Launch { shared: self.shared(rows), ..Launch::new(Module::Attention(kv), name, grid) };
        let merge = Launch::new(Module::Attention(kv), "attend_merge", [self.n_rows, self.n_heads, 1]);
        if self.n_pages > 0 { vec![attend, merge] } else { vec![attend] }
    }

    /// Bytes of shared memory for blocks of this many rows of queries: their scaled elements, weights of positions, and
    /// outputs so far.
    fn shared(&self, rows: u32) -> u32 {
        4 * rows * (2 * self.head_dim.next_multiple_of(4) + PAGE as u32)
    }
}

/// What [`Ceiling`] kernels read and write.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CeilingParams {
    /// `read`: `[n]` vectors of 16 bytes; `multiply`: not used.
    pub from: Address,
    /// A word for each thread of the grid.
    pub to: Address,
    /// `read`: vectors; `multiply`: rounds of 16 tensor core instructions for each warp.
    pub n: u64,
}

/// A kernel that measures a limit of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    /// Reads memory.
    Read,
    /// Multiplies and adds bytes on tensor cores: 16 * 4096 products for each round of a warp.
    Multiply,
}

impl CeilingParams {
    /// The launch with this many blocks of 256 threads.
    pub fn launch(&self, ceiling: Ceiling, blocks: u32) -> Launch {
        let name = if ceiling == Ceiling::Read { "read" } else { "multiply" };
        Launch::new(Module::Ceilings, name, [blocks, 1, 1])
    }
}
