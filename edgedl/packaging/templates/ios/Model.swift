import Foundation

/// The model __NAME__, written by edgedl. Not for several threads at once.
public final class __MODEL__ {
    private let runner: Runner

    /// The model of this package; where ONNX Runtime refuses the accelerator, on the CPU, and `fallback` says why.
    public init(accelerator: Accelerator = .__ACCELERATOR__) throws {
        guard let folder = Bundle.module.url(forResource: "Content", withExtension: nil) else {
            throw ModelError(description: "the package has no folder Content")
        }
        runner = try Runner(folder: folder, accelerator: accelerator)
    }

    /// What runs the model.
    public var accelerator: Accelerator { runner.accelerator }

    /// Why it is not the accelerator asked for, else nil.
    public var fallback: String? { runner.fallback }

    /// The version of the package.
    public var version: String { runner.manifest.version }

    /// Class names in the order of the output's values; empty where the package has none.
    public var labels: [String] { runner.manifest.labels }

__PREDICT__

    /// The best labels of one output's values, best first. One value with two labels is the probability of the second.
    public func top(_ values: [Float], count: Int = 1) -> [Scored] { runner.top(values, count: count) }

    /// Runs the golden inputs of the package here and compares with the golden outputs.
    public func selfTest() throws -> SelfTest { try runner.selfTest() }
}
__OUTPUTS__
