package com.google.ai.edge.litert;

public final class TensorBuffer implements AutoCloseable {
  public native void writeFloat(float[] data);
  public native void writeInt(int[] data);
  public native void writeInt8(byte[] data);
  public native float[] readFloat();
  public native int[] readInt();
  public native byte[] readInt8();
  public native void close();
}
