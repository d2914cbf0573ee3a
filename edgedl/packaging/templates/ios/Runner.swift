import Foundation
import OnnxRuntimeBindings

/// What a model runs on.
public enum Accelerator {
    case cpu
    case coreML
}

/// One of the labels with the model's value for it; `label` is nil where there is not one a value.
public struct Scored {
    public let index: Int
    public let label: String?
    public let value: Float
}

/// Whether the model gives here what it gave where it was packaged.
public struct SelfTest {
    /// One output: `unit` is "lsb" (steps of its scale) or "relative" (to the largest golden value).
    public struct Check {
        public let output: String
        public let unit: String
        public let measured: Double
        public let limit: Double
    }

    public let checks: [Check]
    public var passed: Bool { checks.allSatisfy { $0.measured <= $0.limit } }
}

/// What the wrapper reads of manifest.json.
struct Manifest: Decodable {
    struct Artifact: Decodable { let file: String }
    struct Embedded: Decodable {}
    struct Tolerance: Decodable { let unit: String, value: Double }
    struct Golden: Decodable {
        let samples: Int
        let inputs: [String: String]
        let outputs: [String: String]
        let tolerance: [String: Tolerance]
    }

    let version: String
    let artifact: Artifact
    let inputs: [Tensor]
    let outputs: [Tensor]
    let labels: [String]
    let preprocessing: [Step]
    let embedded: [Embedded]
    let golden: Golden
}

/// A package opened: its manifest, and ONNX Runtime with its model.
final class Runner {
    let manifest: Manifest
    let accelerator: Accelerator
    let fallback: String?
    private let folder: URL
    private let environment: ORTEnv
    private let session: ORTSession

    init(folder: URL, accelerator wanted: Accelerator) throws {
        self.folder = folder
        let text = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
        manifest = try JSONDecoder().decode(Manifest.self, from: text)
        environment = try ORTEnv(loggingLevel: .warning)
        let path = folder.appendingPathComponent(manifest.artifact.file).path
        var used = wanted
        var why: String?
        var made: ORTSession?
        if wanted == .coreML {
            do {
                let options = try ORTSessionOptions()
                try options.appendCoreMLExecutionProvider(with: ORTCoreMLExecutionProviderOptions())
                made = try ORTSession(env: environment, modelPath: path, sessionOptions: options)
            } catch {
                used = .cpu
                why = "CoreML: \(error)"
            }
        }
        session = try made ?? ORTSession(env: environment, modelPath: path, sessionOptions: nil)
        accelerator = used
        fallback = why
    }

    /// Outputs by name of one sample an input, after the steps that are left to the app.
    func predict(_ samples: [Sample]) throws -> [String: [Float]] {
        try infer(samples.map { try preprocessed($0, by: manifest.preprocessing) })
    }

    /// One sample of these values for an input.
    func sample(_ index: Int, _ values: [Float]) throws -> Sample {
        let tensor = manifest.inputs[index]
        return try Sample(values: values, shape: tensor.sampleShape, type: isReal(tensor) ? "float32" : tensor.dtype)
    }

    func top(_ values: [Float], count: Int) -> [Scored] {
        let labels = manifest.labels
        let isBinary = labels.count == 2 && values.count == 1
        let scores = isBinary ? [1 - values[0], values[0]] : values
        let isLabelled = labels.count == scores.count
        return scores.indices.sorted { scores[$0] > scores[$1] }.prefix(count).map { index in
            Scored(index: index, label: isLabelled ? labels[index] : nil, value: scores[index])
        }
    }

    func selfTest() throws -> SelfTest {
        let golden = manifest.golden
        let given = try manifest.inputs.map { try arrays(golden.inputs[$0.name]) }
        let expected = try manifest.outputs.map { try arrays(golden.outputs[$0.name]) }
        let found = try (0..<golden.samples).map { i in
            try infer(try given.indices.map { try sample($0, given[$0][i]) })
        }
        return SelfTest(checks: try manifest.outputs.enumerated().map { k, tensor -> SelfTest.Check in
            guard let allowed = golden.tolerance[tensor.name] else {
                throw ModelError(description: "\(tensor.name): no tolerance")
            }
            let pairs = zip(expected[k].joined(), found.map { $0[tensor.name] ?? [] }.joined())
            let off = pairs.map { abs(Double($0) - Double($1)) }
            let worst = off.contains { $0.isNaN } ? Double.infinity : off.max() ?? 0
            let largest = expected[k].joined().map { abs(Double($0)) }.max() ?? 0
            let measured = allowed.unit == "lsb"
                ? (worst / (tensor.scale.first ?? 1)).rounded(.toNearestOrEven)
                : worst / max(largest, Double(Float.leastNormalMagnitude))
            return SelfTest.Check(output: tensor.name, unit: allowed.unit, measured: measured, limit: allowed.value)
        })
    }

    private func infer(_ samples: [Sample]) throws -> [String: [Float]] {
        var given = [String: ORTValue]()
        for (tensor, sample) in zip(manifest.inputs, samples) {
            given[tensor.name] = try tensor.ortValue(stored(sample, tensor))
        }
        let names = Set(manifest.outputs.map { $0.name })
        let found = try session.run(withInputs: given, outputNames: names, runOptions: nil)
        var values = [String: [Float]]()
        for tensor in manifest.outputs {
            guard let value = found[tensor.name] else { throw ModelError(description: "\(tensor.name) is missing") }
            values[tensor.name] = tensor.dequantized(try tensor.values(of: value))
        }
        return values
    }

    private func stored(_ sample: Sample, _ tensor: Tensor) throws -> [Float] {
        guard sample.shape == tensor.sampleShape else {
            let shapes = "\(tensor.sampleShape), got \(sample.shape)"
            throw ModelError(description: "input \(tensor.name) takes samples of shape \(shapes)")
        }
        if isReal(tensor) { return tensor.quantized(sample.values) }
        guard tensor.dtype == "float32" || tensor.dtype == sample.type else {
            throw ModelError(description: "input \(tensor.name) takes \(tensor.dtype), got \(sample.type)")
        }
        return sample.values
    }

    /// Whether an input takes real values, which are quantized here.
    private func isReal(_ tensor: Tensor) -> Bool {
        tensor.isQuantized && manifest.embedded.isEmpty
    }

    private func arrays(_ file: String?) throws -> [[Float]] {
        guard let file = file else { throw ModelError(description: "a golden file is missing") }
        return try readNpy(Data(contentsOf: folder.appendingPathComponent(file)), samples: manifest.golden.samples)
    }
}
