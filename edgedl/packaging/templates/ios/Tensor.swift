import Foundation
import OnnxRuntimeBindings

/// What is wrong with an input or with a package.
public struct ModelError: Error, CustomStringConvertible {
    public let description: String
}

/// One input or output of the model, as the manifest has it; its first size is the batch.
struct Tensor: Decodable {
    let name: String
    let dtype: String
    let shape: [Int?]
    let scale: [Double]
    let zeroPoint: [Int]

    enum CodingKeys: String, CodingKey {
        case name, dtype, shape, scale
        case zeroPoint = "zero_point"
    }

    var sampleShape: [Int] { shape.dropFirst().map { $0 ?? 1 } }
    var isQuantized: Bool { !scale.isEmpty }

    /// Real values as what the tensor stores: round(value / scale) + zero point, half to even, saturated.
    func quantized(_ values: [Float]) -> [Float] {
        let (low, high) = limits(of: dtype)
        return values.map { value in
            let code = (value / Float(scale[0])).rounded(.toNearestOrEven) + Float(zeroPoint[0])
            return min(max(code, low), high)
        }
    }

    /// The real values of what the tensor stores.
    func dequantized(_ codes: [Float]) -> [Float] {
        isQuantized ? codes.map { ($0 - Float(zeroPoint[0])) * Float(scale[0]) } : codes
    }

    func ortValue(_ values: [Float]) throws -> ORTValue {
        let sizes = ([1] + sampleShape).map { NSNumber(value: $0) }
        return try ORTValue(tensorData: NSMutableData(data: bytes(values)), elementType: elementType(), shape: sizes)
    }

    func values(of value: ORTValue) throws -> [Float] {
        floats(try value.tensorData() as Data, dtype)
    }

    private func bytes(_ values: [Float]) -> Data {
        switch dtype {
        case "float32": return values.withUnsafeBytes { Data($0) }
        case "int32": return values.map { Int32($0) }.withUnsafeBytes { Data($0) }
        case "uint8": return Data(values.map { UInt8($0) })
        default: return Data(values.map { UInt8(bitPattern: Int8($0)) })
        }
    }

    private func elementType() throws -> ORTTensorElementDataType {
        switch dtype {
        case "float32": return .float
        case "int32": return .int32
        case "uint8": return .uInt8
        case "int8": return .int8
        default: throw ModelError(description: "\(name): no tensors of \(dtype)")
        }
    }
}

/// The smallest and the largest number of an integer type.
func limits(of dtype: String) -> (Float, Float) {
    switch dtype {
    case "uint8": return (0, 255)
    case "int8": return (-128, 127)
    case "uint16": return (0, 65535)
    case "int16": return (-32768, 32767)
    default: return (-2147483648, 2147483647)
    }
}

/// The numbers in the bytes of an array of this type.
func floats(_ data: Data, _ dtype: String) -> [Float] {
    switch dtype {
    case "float32":
        return data.withUnsafeBytes { raw in
            (0..<raw.count / 4).map { i in
                Float(bitPattern: UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: 4 * i, as: UInt32.self)))
            }
        }
    case "int32":
        return data.withUnsafeBytes { raw in
            (0..<raw.count / 4).map { i in
                Float(Int32(littleEndian: raw.loadUnaligned(fromByteOffset: 4 * i, as: Int32.self)))
            }
        }
    case "uint8": return data.map { Float($0) }
    default: return data.map { Float(Int8(bitPattern: $0)) }
    }
}

/// The samples of a .npy file: axis 0.
func readNpy(_ data: Data, samples: Int) throws -> [[Float]] {
    let start = 10 + Int(data[8]) + 256 * Int(data[9])  // after the header of version 1
    let header = String(decoding: data.prefix(start), as: UTF8.self)
    let types = ["<f4": "float32", "<i4": "int32", "|u1": "uint8", "|i1": "int8"]
    guard let dtype = types.first(where: { header.contains("'\($0.key)'") })?.value else {
        throw ModelError(description: "a .npy file of a type that is not known here")
    }
    let values = floats(Data(data.dropFirst(start)), dtype)
    let size = values.count / samples
    return (0..<samples).map { Array(values[$0 * size..<($0 + 1) * size]) }
}
