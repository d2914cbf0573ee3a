import CoreGraphics
import Foundation

/// Values before preprocessing. An image is (height, width, channels), values from row to row; `type` is what the values
/// were in the app ("uint8" for pixels, "float32"), since steps on integers round.
public struct Sample {
    let values: [Float]
    let shape: [Int]
    let type: String

    public init(values: [Float], shape: [Int], type: String = "float32") throws {
        guard values.count == shape.reduce(1, *) else {
            throw ModelError(description: "\(values.count) values are not of shape \(shape)")
        }
        self.values = values
        self.shape = shape
        self.type = type
    }

    /// Bytes of a camera or a decoder, uint8.
    public init(bytes: [UInt8], shape: [Int]) throws {
        try self.init(values: bytes.map { Float($0) }, shape: shape, type: "uint8")
    }

    /// The red, green and blue of an image, uint8.
    public init(image: CGImage) throws {
        var rgba = [UInt8](repeating: 0, count: 4 * image.width * image.height)
        let isDrawn = rgba.withUnsafeMutableBytes { bytes -> Bool in
            guard let context = CGContext(
                data: bytes.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                bytesPerRow: 4 * image.width, space: CGColorSpaceCreateDeviceRGB(),
                bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue
            ) else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
            return true
        }
        guard isDrawn else { throw ModelError(description: "the image cannot be drawn") }
        let values = rgba.indices.filter { $0 % 4 != 3 }.map { Float(rgba[$0]) }
        try self.init(values: values, shape: [image.height, image.width, 3], type: "uint8")
    }
}

/// A step that is left to the app; the keys of its table.
struct Step: Decodable {
    let op: String
    let dtype: String?
    let height: Int?
    let width: Int?
    let method: String?
    let top: Int?
    let left: Int?
    let factor: Double?
    let offset: Double?
    let mean: Numbers?
    let std: Numbers?

    /// One number, or one a channel.
    struct Numbers: Decodable {
        let values: [Float]

        init(from decoder: Decoder) throws {
            let container = try decoder.singleValueContainer()
            if let one = try? container.decode(Double.self) {
                values = [Float(one)]
            } else {
                values = try container.decode([Double].self).map { Float($0) }
            }
        }
    }
}

/// The sample after all steps, with the arithmetic of edgedl's Python: float32, in the order written.
func preprocessed(_ sample: Sample, by steps: [Step]) throws -> Sample {
    var current = sample
    for (i, step) in steps.enumerated() {
        do {
            current = try applied(step, to: current)
        } catch {
            throw ModelError(description: "preprocess step \(i + 1) (\(step.op)): \(error)")
        }
    }
    return current
}

private func applied(_ step: Step, to sample: Sample) throws -> Sample {
    switch step.op {
    case "cast":
        return try cast(sample, to: step.dtype ?? sample.type)
    case "scale":
        let (factor, offset) = (Float(step.factor ?? 1), Float(step.offset ?? 0))
        return try Sample(values: sample.values.map { $0 * factor + offset }, shape: sample.shape)
    case "normalize":
        return try normalized(sample, mean: step.mean?.values ?? [0], std: step.std?.values ?? [1])
    case "grayscale":
        return try grayscale(sample)
    case "crop":
        return try cropped(sample, step)
    case "resize":
        return try resized(sample, step)
    default:
        throw ModelError(description: "is not known here")
    }
}

/// The same numbers in another type; integers are rounded half up and saturate.
func cast(_ sample: Sample, to type: String) throws -> Sample {
    if sample.type == type { return sample }
    if type == "float32" { return try Sample(values: sample.values, shape: sample.shape, type: type) }
    let (low, high) = limits(of: type)
    let isFloat = sample.type == "float32"
    let values = sample.values.map { min(max(isFloat ? ($0 + 0.5).rounded(.down) : $0, low), high) }
    return try Sample(values: values, shape: sample.shape, type: type)
}

private func normalized(_ sample: Sample, mean: [Float], std: [Float]) throws -> Sample {
    let channels = max(mean.count, std.count)
    guard channels == 1 || channels == sample.shape.last else {
        throw ModelError(description: "is for \(channels) channels, got shape \(sample.shape)")
    }
    let values = sample.values.enumerated().map { i, x in (x - mean[i % mean.count]) / std[i % std.count] }
    return try Sample(values: values, shape: sample.shape)
}

private func grayscale(_ sample: Sample) throws -> Sample {
    guard sample.shape.count == 3, sample.shape[2] == 3 else {
        throw ModelError(description: "needs RGB images (height, width, 3), got shape \(sample.shape)")
    }
    let values = (0..<sample.values.count / 3).map { i -> Float in
        let red: Float = 0.299 * sample.values[3 * i]
        let green: Float = 0.587 * sample.values[3 * i + 1]
        let blue: Float = 0.114 * sample.values[3 * i + 2]
        return red + green + blue
    }
    return try cast(Sample(values: values, shape: [sample.shape[0], sample.shape[1], 1]), to: sample.type)
}

private func cropped(_ sample: Sample, _ step: Step) throws -> Sample {
    let (rows, columns, channels) = try image(sample)
    let (height, width) = (step.height ?? rows, step.width ?? columns)
    let top = step.top ?? (rows - height) / 2
    let left = step.left ?? (columns - width) / 2
    guard height <= rows, width <= columns, top + height <= rows, left + width <= columns else {
        throw ModelError(description: "a box of \(height) x \(width) does not fit into \(rows) x \(columns)")
    }
    let values = (0..<height).flatMap { y -> ArraySlice<Float> in
        let start = ((top + y) * columns + left) * channels
        return sample.values[start..<start + width * channels]
    }
    return try Sample(values: values, shape: [height, width] + sample.shape.dropFirst(2), type: sample.type)
}

private func resized(_ sample: Sample, _ step: Step) throws -> Sample {
    let (rows, columns, channels) = try image(sample)
    let (height, width) = (step.height ?? rows, step.width ?? columns)
    if height == rows, width == columns { return sample }
    let isNearest = step.method == "nearest"
    var values = [Float]()
    values.reserveCapacity(height * width * channels)
    for y in 0..<height {
        let down = Place(y, from: rows, to: height)
        for x in 0..<width {
            let along = Place(x, from: columns, to: width)
            for c in 0..<channels {
                let pixel = { (row: Int, column: Int) in sample.values[(row * columns + column) * channels + c] }
                if isNearest {
                    values.append(pixel(down.nearest, along.nearest))
                } else {
                    let above = along.mix(pixel(down.first, along.first), pixel(down.first, along.second))
                    let below = along.mix(pixel(down.second, along.first), pixel(down.second, along.second))
                    values.append(down.mix(above, below))
                }
            }
        }
    }
    let shape = [height, width] + sample.shape.dropFirst(2)
    return try cast(Sample(values: values, shape: shape, type: isNearest ? sample.type : "float32"), to: sample.type)
}

/// Where a new pixel lies among the old ones of an axis.
private struct Place {
    let nearest: Int
    let first: Int
    let second: Int
    let part: Float

    init(_ index: Int, from old: Int, to size: Int) {
        let ratio = Float(old) / Float(size)
        let source = (Float(index) + 0.5) * ratio - 0.5
        nearest = Int(min((Float(index) + 0.5) * ratio, Float(old - 1)))
        first = max(Int(source.rounded(.down)), 0)
        second = min(Int(source.rounded(.up)), old - 1)
        part = source - source.rounded(.down)
    }

    func mix(_ a: Float, _ b: Float) -> Float { a + (b - a) * part }
}

private func image(_ sample: Sample) throws -> (Int, Int, Int) {
    guard sample.shape.count == 2 || sample.shape.count == 3 else {
        throw ModelError(description: "needs images, got shape \(sample.shape)")
    }
    return (sample.shape[0], sample.shape[1], sample.shape.count == 3 ? sample.shape[2] : 1)
}
