package com.google.ai.edge.litert;

import android.content.res.AssetManager;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.Map;
import org.json.JSONException;
import org.json.JSONObject;

/** LiteRT on the CPU: the process of litert.py, which the properties `python` and `server` start. Refuses the rest. */
public final class CompiledModel implements AutoCloseable {
  public static final class Options {
    final Accelerator accelerator;

    public Options(Accelerator... accelerators) {
      accelerator = accelerators[0];
    }
  }

  private static Process process;
  private static BufferedReader answers;
  private final String file;

  private CompiledModel(String file) {
    this.file = file;
  }

  public static CompiledModel create(AssetManager assetManager, String assetName, Options options) {
    return create(new File(assetManager.folder, assetName).getPath(), options);
  }

  public static CompiledModel create(String filePath, Options options) {
    if (options.accelerator != Accelerator.CPU) throw new IllegalStateException("no such accelerator in a test");
    if (!new File(filePath).isFile()) throw new IllegalStateException(filePath + " is missing");
    return new CompiledModel(filePath);
  }

  public TensorBuffer createInputBuffer(String inputName, String signature) {
    return new TensorBuffer();
  }

  public TensorBuffer createOutputBuffer(String outputName, String signature) {
    return new TensorBuffer();
  }

  public void run(Map<String, TensorBuffer> inputs, Map<String, TensorBuffer> outputs, String signature)
      throws IOException, JSONException {
    JSONObject codes = new JSONObject();
    for (String name : inputs.keySet()) codes.put(name, inputs.get(name).codes);
    JSONObject found = answer(new JSONObject().put("file", file).put("inputs", codes));
    for (String name : outputs.keySet()) outputs.get(name).codes = found.getJSONArray(name);
  }

  private static JSONObject answer(JSONObject request) throws IOException, JSONException {
    if (process == null) {
      ProcessBuilder builder = new ProcessBuilder(System.getProperty("python"), System.getProperty("server"));
      process = builder.redirectError(ProcessBuilder.Redirect.INHERIT).start();
      answers = new BufferedReader(new InputStreamReader(process.getInputStream()));
    }
    process.getOutputStream().write((request + "\n").getBytes("UTF-8"));
    process.getOutputStream().flush();
    return new JSONObject(answers.readLine());
  }

  public void close() {}
}
