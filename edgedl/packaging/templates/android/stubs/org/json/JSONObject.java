package org.json;

import java.util.Iterator;

public class JSONObject {
  public JSONObject(String json) throws JSONException {}

  public native Object get(String name) throws JSONException;
  public native Object opt(String name);
  public native int getInt(String name) throws JSONException;
  public native int optInt(String name, int fallback);
  public native double getDouble(String name) throws JSONException;
  public native double optDouble(String name, double fallback);
  public native String getString(String name) throws JSONException;
  public native String optString(String name);
  public native JSONArray getJSONArray(String name) throws JSONException;
  public native JSONObject getJSONObject(String name) throws JSONException;
  public native Iterator<String> keys();
}
