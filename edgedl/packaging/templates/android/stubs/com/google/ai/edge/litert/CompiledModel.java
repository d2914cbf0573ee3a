package com.google.ai.edge.litert;

import android.content.res.AssetManager;
import java.util.Map;

public final class CompiledModel implements AutoCloseable {
  public static final class Options {
    public Options(Accelerator... accelerators) {}
  }

  public static native CompiledModel create(AssetManager assetManager, String assetName, Options options);
  public static native CompiledModel create(String filePath, Options options);
  public native TensorBuffer createInputBuffer(String inputName, String signature);
  public native TensorBuffer createOutputBuffer(String outputName, String signature);
  public native void run(Map<String, TensorBuffer> inputs, Map<String, TensorBuffer> outputs, String signature);
  public native void close();
}
